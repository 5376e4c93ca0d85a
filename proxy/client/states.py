"""The states of a client's session, and every transition between them, as data.

::

                 WAIT                PIN                 STREAM
        RELAY ─────────▶ WAITING ─────────▶ PINNED ─────────────▶ STREAM ──TUNNEL──▶ TUNNEL
          ▲               │   ▲               │  │                  │
          ├────RESUME─────┘   └──────WAIT─────┼──┼──────────────────┘
          ├────RELEASE────────────────────────┘  │
          └────MEND──────────── BROKEN ◀──BREAK──┘       any ──CLOSE──▶ CLOSING ──LOST──▶ CLOSED

PIN leads from RELAY to PINNED too, if a link is at hand. An event a state does not know changes nothing and
raises `IllegalEvent`.
"""

from __future__ import annotations

import enum

from proxy.resp.errors import PannierError


class State(enum.Enum):
    """What a session does with the bytes that come from its client."""

    __hash__ = object.__hash__  # each is one object; Enum's own hashes its name, in Python

    RELAY = enum.auto()
    """Stateless commands go to the shared link."""
    WAITING = enum.auto()
    """Commands wait: for replies in flight, for a link, for an answer made by the sidecar."""
    PINNED = enum.auto()
    """Commands go to a counted link of the session's own: a transaction, a blocking or a large command."""
    STREAM = enum.auto()
    """Commands go to a link of the session's own that keeps state of the client's until RESET."""
    TUNNEL = enum.auto()
    """Bytes go to a link of the session's own, unread: replication."""
    BROKEN = enum.auto()
    """A transaction's link was lost: commands are refused until the client ends the transaction."""
    CLOSING = enum.auto()
    """The last reply is on its way; what still comes is ignored."""
    CLOSED = enum.auto()
    """The client is gone."""


class Event(enum.Enum):
    """What moves a session from state to state."""

    __hash__ = object.__hash__  # as for states

    WAIT = enum.auto()
    RESUME = enum.auto()
    PIN = enum.auto()
    RELEASE = enum.auto()
    STREAM = enum.auto()
    TUNNEL = enum.auto()
    BREAK = enum.auto()
    MEND = enum.auto()
    CLOSE = enum.auto()
    LOST = enum.auto()


class IllegalEvent(PannierError):
    """An event that the state does not know; nothing has changed."""


_END = {Event.CLOSE: State.CLOSING, Event.LOST: State.CLOSED}

TRANSITIONS: dict[State, dict[Event, State]] = {
    State.RELAY: {Event.WAIT: State.WAITING, Event.PIN: State.PINNED, **_END},
    State.WAITING: {Event.RESUME: State.RELAY, Event.PIN: State.PINNED, **_END},
    State.PINNED: {Event.RELEASE: State.RELAY, Event.STREAM: State.STREAM, Event.BREAK: State.BROKEN, **_END},
    State.STREAM: {Event.WAIT: State.WAITING, Event.TUNNEL: State.TUNNEL, **_END},
    State.TUNNEL: {**_END},
    State.BROKEN: {Event.MEND: State.RELAY, **_END},
    State.CLOSING: {Event.LOST: State.CLOSED},
    State.CLOSED: {},
}


def move(state: State, event: Event) -> State:
    """The state after `event`. Raises IllegalEvent."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalEvent(f"{event.name} in state {state.name}") from None
