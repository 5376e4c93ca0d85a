"""A session's time on a link of its own: transactions, blocking and large commands, lasting state.

A `Pin` lives from the command that needs it to the moment its connection holds nothing of the client's any
more (`RELEASE`), or to the client's end. It takes over the session's buffer for as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.client import admission, guarding, homes, journal, local
from proxy.client.dispatch import LOCAL, PING, Route
from proxy.client.flow import Reason
from proxy.client.states import Event, State
from proxy.resp import encode
from proxy.resp.commands import Command
from proxy.resp.keys import key_positions, word
from proxy.resp.messages import Translator
from proxy.resp.namespace import Strip
from proxy.resp.patterns import SHORT
from proxy.resp.requests import LARGE, LargeFrame, Request
from proxy.tier.rules import Touch, key_name
from proxy.upstream.pinned import Expect, Mode, PinnedLink

if TYPE_CHECKING:
    from proxy.client.session import Session

_PLUS, _MINUS = b"+-"
_MOVING = frozenset({"select", "auth", "hello"})
"""Commands after which a connection is somebody else's, or elsewhere."""
_DONE_AFTER = (0.05, 1.0)
"""Seconds after which what was sent has been done, where replies are not counted."""


class Pin:
    """Implements `upstream.pinned.Owner` for a session."""

    __slots__ = (
        "answering", "asked", "at", "began", "blocking", "clean", "ending", "everything",
        "in_pieces", "large", "leaving", "link", "multi", "named", "off", "session", "skip",
        "skipping", "strayed", "timed", "told", "told_all", "touched", "transaction", "translator",
        "watching",
    )  # fmt: skip

    def __init__(self, session: Session, link: PinnedLink) -> None:
        self.session = session
        self.link = link
        link.owner = self
        link.mode = Mode.COUNTED
        self.transaction = False
        """Whether MULTI or WATCH has been sent and not ended: commands follow each other on this link."""
        self.multi = False
        """Whether Redis is queueing commands."""
        self.watching = False
        """Whether Redis watches keys for this connection."""
        self.blocking = False
        """Whether the one command under way may block: a client that leaves does not want its reply."""
        self.began = 0.0
        """When the command was sent that is timed; 0: none is."""
        self.asked: deque[tuple[list[bytes], float]] = deque()
        """Commands sent over the counted link and not answered, and when; 0: they are not timed."""
        self.timed: Command | None = None
        self.leaving = False
        """Whether Redis has been told that the client sends no more while its command blocks."""
        self.ending = False
        """Whether RESET or QUIT is under way: nothing may follow on this link."""
        self.answering: list[bytes] | None = None
        """The command of the sidecar's own that is being answered; those behind it wait."""
        self.at = session.key
        """Whose connection it is, in which database and protocol, as far as a translator has heard."""
        self.strayed = False
        """Whether that may have changed without our hearing."""
        self.off = False
        """Whether CLIENT REPLY OFF has been sent."""
        self.skip = False
        """Whether CLIENT REPLY SKIP was the last command: Redis does not answer the next one, as a rule."""
        self.named = False
        """Whether another client's CLIENT TRACKING names this link in REDIRECT: the session keeps it."""
        self.clean = True
        """Whether another client may use the connection afterwards."""
        self.touched: set[int] = set()
        """Keys (their marks) whose change a reply may show before their invalidation comes over the tracked
        link."""
        self.told: list[bytes] = []
        """Keys that other sidecars are to be told of then, if they are told of writes."""
        self.told_all = False
        """Whether they are to be told to forget everything."""
        self.everything = False
        """Whether that may be all keys: FLUSHALL, SWAPDB and the like."""
        self.large: LargeFrame | None = None
        """The command that is being relayed while it arrives."""
        self.skipping = False
        """Whether it is not relayed: it has been refused."""
        space = session.space
        self.translator = Translator(space.namespace, session.protocol) if space.guarded else None
        """What makes Redis' replies the client's, if they are not."""
        self.in_pieces = False
        """Whether the reply that comes is passed on as it comes: there is nothing to translate in it."""
        if self.translator is not None:
            link.take_whole(self._gathers, session.clients.settings.output_buffer_limit)

    @property
    def owes(self) -> bool:
        """Whether a client that sends no more still wants replies from this link."""
        if self.answering is not None:
            return True
        if self.large is not None or (self.blocking and not self.leaving):
            return False
        return self.session.state is State.PINNED and not self.link.idle

    def leave(self) -> None:
        """Hear that the client sends no more.

        Redis then ends the client's blocking command unless it can answer at once; so it hears of it too. A
        reply that Redis announced and does not give (it does so with CLIENT REPLY SKIP within a transaction)
        must not keep the connection for ever.
        """
        self.link.hurried = True
        if self.blocking and not self.link.idle and not self.leaving:
            self.clean = False
            self.leaving = self.link.finish()

    # --- from the client

    def listen(self) -> None:
        """Relay whatever Redis sends from now on, asked for or not."""
        self.session.move(Event.STREAM)
        self.link.mode = Mode.STREAM

    def take(self, buf: bytes, pos: int) -> int:
        """Take what can be taken at `pos`, as the session's state demands."""
        if self.large is not None:
            return self._take_large(buf, pos)
        session = self.session
        once = session.state is State.PINNED and not self.transaction
        if once or self.ending or self.leaving or self.answering:
            return pos  # the next ones wait for its reply
        request = session.parser.parse(buf, pos)
        if request is None:
            return self._begin_large(buf, pos)
        if not request.arguments:
            return request.end
        if session.state is State.BROKEN:
            self._take_broken(request)
            return request.end
        own = self._is_own(request.arguments)
        if own and session.state is State.PINNED and not self.link.idle:
            return pos  # whether it stands inside a transaction, the replies to come will tell
        if own and not self.multi:
            if admission.pauses(session):
                return pos
            session.commands += 1
            self._answer(request.arguments)
            return request.end
        if not self._forwardable(request.arguments) or admission.pauses(session):
            return pos
        session.commands += 1
        self._send(request.arguments, request.frame(buf))
        return request.end

    # --- the sidecar's own commands

    def _is_own(self, arguments: list[bytes]) -> bool:
        """Whether the sidecar answers a command itself, outside of a transaction."""
        space, dispatcher = self.session.space, self.session.clients.dispatcher
        if self.off or self.skip or not dispatcher.local_in(arguments, space.namespace is not None):
            return False
        return space.tenant is not None or dispatcher.name(arguments) != "acl|whoami"

    def _answer(self, arguments: list[bytes]) -> None:
        """Answer a command of the sidecar's own, once all earlier ones have been answered."""
        self.answering = arguments
        if self.session.state is State.STREAM:
            self.link.mark(self._marked)
        else:
            self.session.undertake(self._work(arguments), arguments)

    def _marked(self, mark: bytes) -> None:
        """Go on with it: its turn has come."""
        if self.answering is None:
            return
        name = self.session.clients.dispatcher.name(self.answering)
        if mark.startswith(b"*"):
            self.answered_own(guarding.subscribed(self.session, name))
        elif self.strayed:
            self.answered_own(guarding.strayed(name))
        else:
            self.session.undertake(self._work(self.answering), self.answering)

    async def _work(self, arguments: list[bytes]) -> bytes:
        session = self.session
        if self.at != session.key:
            await local.follow(session, self.at)
        return await local.whole_answer(session, session.clients.dispatcher.name(arguments), arguments)

    def answered_own(self, reply: bytes) -> None:
        """Give the client the reply to the sidecar's own command, and take the next ones."""
        self.answering = None
        with contextlib.suppress(RuntimeError):  # see `upstream.caller.Caller.relay`
            self.session.write(reply)
        # Not at once: this may be called while commands are being taken, or frames handed on.
        asyncio.get_running_loop().call_soon(self.session.consume)

    def _send(self, arguments: list[bytes], data: bytes) -> None:
        """Send a command, or its first part, as the link's mode demands."""
        if self.session.state is State.STREAM:
            self._stream(*guarding.translated(self, arguments, data))
        else:
            self.forward(self.session.clients.dispatcher.route(arguments), arguments, data)

    def _forwardable(self, arguments: list[bytes]) -> bool:
        """Whether a command may be sent now; one that changes the link's mode waits for earlier replies."""
        session = self.session
        if session.state is not State.PINNED or self.link.idle:
            return True
        dispatcher = session.clients.dispatcher
        route = dispatcher.route(arguments)  # a LOCAL one is answered here, once EXEC's reply has come
        return route is not Route.LOCAL and not self._leaves_state(route, dispatcher.name(arguments))

    def forward(self, route: Route, arguments: list[bytes], data: bytes) -> None:
        """Send a command over the counted link."""
        dispatcher = self.session.clients.dispatcher
        arguments, data, strip = guarding.translated(self, arguments, data)
        if arguments is guarding.INVALID:
            route = Route.ONCE
        name = dispatcher.name(arguments)
        if not self.transaction and route not in (Route.ONCE, Route.TUNNEL):
            self._introduce()
        if self._leaves_state(route, name):
            self.listen()
            self._stream(arguments, data, strip)
            return
        if name in LOCAL and not self.transaction:
            self.clean = False  # a malformed command of ours: Redis answers it, whatever it makes of it
        if dispatcher.fenced(name) and not self.transaction:
            self.link.expect(Expect.DISCARDED)
            self.link.send(PING)
        what = Expect.PROBE if route is Route.PROBE else dispatcher.expect(arguments)
        self.transaction = self.transaction or what in (Expect.MULTI, Expect.WATCH)
        self.ending = what in (Expect.QUIT, Expect.RESET)
        self.blocking = route is Route.ONCE and self.large is None and not self.transaction
        self.link.patient = self.blocking or self.large is not None
        command = dispatcher.find(arguments)
        waits = command is not None and "blocking" in command.flags and not self.multi
        if self.link.idle and not self.blocking:
            self.began, self.timed = monotonic(), command
        self.asked.append((arguments, 0.0 if waits or self.large is not None else monotonic()))
        self._note(arguments)
        self.session.space.writes.command(name, arguments)
        self.link.expect(what)
        if self.translator is not None:
            self.translator.sent(arguments, strip)
        self.link.send(data)
        if self.session.eof:
            self.leave()

    def _note(self, arguments: list[bytes]) -> None:
        """Take note of what the tier must not show once the reply has come: see `relay`.

        Where keys cannot be told, or replies not counted, replies wait at the link's fence instead.
        """
        tier, rules = self.session.clients.tier, self.session.space.rules
        if tier is None and self.session.clients.bus is None:
            return
        command = self.session.clients.dispatcher.find(arguments)
        touch, keys = rules.touch(command, arguments)
        if touch is Touch.NOTHING:
            return
        uncounted = self.session.state is State.STREAM
        if tier is None:
            self.told_all = self.told_all or touch is Touch.EVERYTHING
            if uncounted:
                self._tell_later()
            return
        if touch is Touch.WRITES:
            tier.drop(keys, self.session.space.prefix)
            if self.session.clients.tells_writes and command is not None:
                self.told += map(key_name, rules.keys(command, arguments) or ())
                self.told_all = self.told_all or self._more_keys_may_come(command, arguments)
        if touch is Touch.EVERYTHING:
            tier.clear()
            # A flush is pushed, so the fence is enough; the others are not.
            self.everything = not uncounted or arguments[0].lower() not in (b"flushall", b"flushdb")
            self.told_all = True
        if uncounted or touch in (Touch.UNKNOWN, Touch.READS_UNKNOWN) or self.large is not None:
            self.link.fence = self._fence
        else:
            self.touched.update(keys)
        if uncounted:
            self._tell_later()

    def _more_keys_may_come(self, command: Command, arguments: list[bytes]) -> bool:
        """Whether a large command's keys may stand in what has not arrived."""
        if self.large is None:
            return False
        missing = min(self.large.count - len(arguments), SHORT)
        uses = key_positions(command, arguments + [b""] * missing)
        return uses is None or any(use.index >= len(arguments) for use in uses)

    def _fence(self, then: Callable[[], None]) -> None:
        tier = self.session.clients.tier
        prefix = self.session.space.prefix
        if tier is not None and tier.loose and self.session.clients.tells_writes:
            self.session.clients.tell(self.session, "script", everything=True)
        if tier is None or not tier.shows(prefix):
            then()
        else:
            self.session.clients.links.fence(then, prefix)

    def _settle(self) -> None:
        """Have no shelf show what was before the reply that has come."""
        tier = self.session.clients.tier
        if tier is None or (self.multi and self.link.next is not Expect.END):
            return  # commands are queued and have done nothing yet
        if self.everything:
            tier.clear()
        elif self.touched:
            tier.drop(self.touched, self.session.space.prefix)

    def _tell(self) -> None:
        """Have other sidecars forget what has been written."""
        told, self.told = self.told, []
        everything, self.told_all = self.told_all, False
        if told or everything:
            self.session.clients.tell(self.session, "write", told, everything=everything)

    def _tell_later(self) -> None:
        """The same where replies are not counted: when Redis has most likely done it, and once more."""
        told, self.told = tuple(self.told), []
        everything, self.told_all = self.told_all, False
        loop, session = asyncio.get_running_loop(), self.session
        for seconds in _DONE_AFTER if told or everything else ():
            loop.call_later(seconds, session.clients.tell, session, "write", told, (), everything)
        if self.everything:
            loop.call_later(_DONE_AFTER[-1], self._overturned)

    def _overturned(self) -> None:
        """What changed everything has been done."""
        self.everything = False
        if self.session.clients.tier is not None:
            self.session.clients.tier.clear()

    def _introduce(self) -> None:
        """Give the link the client's name: Redis tells it by CLIENT GETNAME and CLIENT LIST from now on."""
        name = self.session.name
        if self.link.name != name:
            self.link.name = name
            self.link.expect(Expect.DISCARDED)
            self.link.send(encode.request("CLIENT", "SETNAME", name))

    def _leaves_state(self, route: Route, name: str) -> bool:
        """Whether a command makes the link one that is no longer counted."""
        if route in (Route.STATE, Route.TUNNEL):
            return True
        changes = route is Route.PROBE or self.session.clients.dispatcher.changes_link(name)
        return self.transaction and changes

    def _stream(self, arguments: list[bytes], data: bytes, strip: Strip | None) -> None:
        """Send a command over a link whose replies are not counted."""
        session = self.session
        name = session.clients.dispatcher.name(arguments)
        what = session.clients.dispatcher.expect(arguments)
        if what is Expect.RESET:
            self.link.expect(Expect.RESET)
            self.link.send(data)
            if self.skip:
                self.link.expect(Expect.FENCE)
                self.link.send(data + PING)
            session.move(Event.WAIT)
            return
        begins = what is Expect.MULTI and len(arguments) == 1
        self.multi = begins or (self.multi and what not in (Expect.END, Expect.DISCARD))
        silent, self.skip = self.off or self.skip, False
        if name == "client|reply" and len(arguments) == 3 and not self.multi:
            self._switch_replies(word(arguments[2]))
            silent = word(arguments[2]) != b"on" and (silent or self.off or self.skip)
        if name in _MOVING:
            self.strayed = self.translator is None
            strip = functools.partial(self._moved, guarding.moved(name, arguments), strip)
        if self.translator is not None and silent:
            self.translator.sent_silently(arguments)
        elif self.translator is not None:
            self.translator.sent(arguments, strip)
        if session.clients.dispatcher.route(arguments) is Route.TUNNEL:
            self.link.mode = Mode.TUNNEL
            session.move(Event.TUNNEL)
        self._note(arguments)
        if name == "client|tracking":
            data = local.redirected(session, arguments, data)
        self.link.send(data)

    def _moved(self, change: dict[str, Any], strip: Strip | None, reply: bytes) -> bytes:
        """Note what a SELECT, AUTH or HELLO has changed, if Redis did as it was told."""
        if not reply.startswith(b"-"):
            self.at = self.at._replace(**change)
        return reply if strip is None else strip(reply)

    def _switch_replies(self, how: bytes) -> None:
        """Note a CLIENT REPLY (Redis docs: CLIENT REPLY)."""
        self.skip = how == b"skip" and not self.off
        if how in (b"on", b"off"):
            self.off = how == b"off"

    def _begin_large(self, buf: bytes, pos: int) -> int:
        if len(buf) - pos < LARGE:
            return pos
        known = self.session.parser.large(buf, pos)
        if known is None:
            return pos
        arguments, frame, end = known
        if self.session.state is State.BROKEN or not self._forwardable(arguments):
            return pos
        if self.translator is not None and guarding.waits_for_all(self, arguments, frame):
            return admission.wait_for_all(self.session, frame, buf, pos, end)
        if admission.pauses(self.session):
            return pos
        self.session.commands += 1
        self.large = frame
        self._send(arguments, buf[pos:end])
        return end

    def _take_large(self, buf: bytes, pos: int) -> int:
        frame = self.large
        if frame is None:
            return pos
        end = frame.advance(buf, pos)
        if end > pos and not self.skipping:
            self.link.send(buf[pos:end])
        if frame.done:
            self.large = None
            self.skipping = False
        return end

    def _take_broken(self, request: Request) -> None:
        """Refuse commands until the client ends the transaction whose link was lost."""
        session = self.session
        name = session.clients.dispatcher.name(request.arguments)
        session.commands += 1
        if name not in ("discard", "unwatch", "reset", "quit"):
            self.link.connector.tally.unserved += 1
        if name == "exec":
            session.write(
                encode.error("EXECABORT Transaction discarded: the connection to upstream was lost")
            )
        elif name in ("discard", "unwatch", "reset", "quit"):
            session.write(b"+RESET\r\n" if name == "reset" else encode.OK)
        else:
            session.write(
                encode.error("ERR pannier: the connection to upstream was lost in this transaction")
            )
            return
        session.pin = None
        session.move(Event.MEND)
        if name == "reset":
            homes.reset(session)
        elif name == "quit":
            session.finish()

    # --- from Redis: upstream.pinned.Owner

    def relay(self, data: bytes) -> None:
        """Take reply bytes for the client."""
        if self.touched or self.everything:
            self._settle()
        if self.translator is not None and not self.in_pieces:
            data = self.translator.take(data)
        if data:
            self.session.write(data)

    def _gathers(self, first: int) -> bool:
        """Whether the frame that begins with that byte is to be taken as a whole."""
        translator = self.translator
        if translator is None or self.link.next is Expect.DISCARDED:
            self.in_pieces = False
            return False
        self.in_pieces = self.session.state is not State.STREAM and not translator.alters(first)
        return not self.in_pieces

    def answered(self, what: Expect, first: int) -> None:
        """Follow the state of the connection by its replies."""
        if self.translator is not None and self.in_pieces:
            self.translator.passed()
            self.in_pieces = False
        session = self.session
        if self.began:
            session.clients.latency.pinned(self.timed, self.began)
            self.began = 0.0
        if self.asked and what is not Expect.DISCARDED:
            arguments, came = self.asked.popleft()
            if came:
                session.clients.slowlog.pinned(session, arguments, came)
            session.pinned_answered()
        if what is Expect.QUIT:
            session.finish()
            return
        if what is Expect.RESET:
            self.streams_reset()
            return
        if what is Expect.MULTI:
            self.multi = self.multi or first == _PLUS
        elif what is Expect.PROBE and first != _MINUS:
            self.listen()
        elif self.multi and (what is Expect.END or (what is Expect.DISCARD and first == _PLUS)):
            self.multi = self.watching = False
            if what is Expect.DISCARD:
                self.told, self.told_all = [], False
        elif what is Expect.WATCH and first == _PLUS and not self.multi:
            self.watching = True
        elif what is Expect.UNWATCH and first == _PLUS and not self.multi:
            self.watching = False
        if not self.link.idle or self.large is not None:
            return
        if not self.multi:
            self._tell()
            self.touched.clear()
            self.everything = False
            if session.state is State.PINNED:
                self.link.fence = None
        if session.farewell:
            session.dismiss()
            return
        if session.state is State.PINNED and not (self.multi or self.watching):
            self._release()
        session.consume()

    def streams_reset(self) -> None:
        """Answer RESET and go back to the shared link; the connection is not used again."""
        session = self.session
        self.clean = False
        self._let_go()
        if session.farewell:
            session.dismiss()
            return
        if session.state is State.CLOSING:
            return  # what it was sent before is still on its way
        if session.state is State.WAITING:
            session.move(Event.RESUME)
        else:
            session.move(Event.RELEASE)
        homes.reset(session)
        if self.link.reset_answered:
            session.write(b"+RESET\r\n")
        session.consume()

    def pin_lost(self, why: str) -> None:
        """Take the loss of the connection as mildly as what it held allows."""
        session = self.session
        error = self.link.connector.lost(why)
        expected = list(self.link.expected)
        self.multi = self.multi and Expect.END not in expected
        self._settle()
        self._tell()
        if session.farewell:
            session.pin = None
            session.dismiss()
            return
        broken_off = self.link.scanner.open or self.large is not None
        if self.leaving or broken_off or session.state is not State.PINNED:
            session.pin = None
            why = str(error).removeprefix("ERR pannier: ")
            journal.say(session, logging.INFO, "client_closed", "closed", why)
            session.finish()
            return
        unknown = error.of_unknown_outcome()
        owed = len(expected) - expected.count(Expect.DISCARDED)
        self.link.connector.tally.unserved += owed
        session.write(unknown.reply * owed)
        self.ending = False
        session.flow.release(Reason.PIN)
        if Expect.QUIT in expected:
            session.finish()
            return
        if self._in_transaction_after(expected):
            session.move(Event.BREAK)
        else:
            session.pin = None
            session.move(Event.RELEASE)
        session.consume()

    def _in_transaction_after(self, expected: list[Expect]) -> bool:
        """Whether commands may follow that the client believes to be inside a transaction.

        One whose MULTI or WATCH has just been answered with an error is none, unless commands are on their
        way behind it.
        """
        inside = self.multi or self.watching
        behind = bool(self.session.buffer)
        for place, what in enumerate(expected):
            if what in (Expect.MULTI, Expect.WATCH):
                inside = inside or behind or place < len(expected) - 1
            elif what in (Expect.END, Expect.DISCARD):
                inside = False
        return inside

    def pin_full(self, full: bool) -> None:
        """Stop or go on taking the client's commands: Redis does not keep up, or does again."""
        if full:
            self.session.hold(Reason.PIN)
        else:
            self.session.release(Reason.PIN)

    # --- ending

    def last_replies(self) -> bool:
        """Whether all replies are here; if not, `Session.dismiss` is called as soon as they are.

        Called once the client has sent bytes that are no RESP. Where replies are not counted, the one to a
        RESET comes after them all.
        """
        if self.session.state is State.STREAM and self.large is None:
            self.link.expect(Expect.RESET)
            self.link.send(encode.request("RESET"))
            return False
        if self.session.state is not State.PINNED:
            return True
        self.clean = False
        if self.large is not None:
            self.large = None
            self.link.expected.pop()
        return self.link.idle

    def drop(self) -> None:
        """Give up the link with the client: Redis unblocks, discards and unsubscribes by itself."""
        self.clean = False
        self._let_go()

    def _release(self) -> None:
        session = self.session
        if self.named and not self.link.ended.is_set():
            session.pin, session.reserved = None, self.link
            self.link.owner = None
            session.flow.release(Reason.PIN)
        else:
            self._let_go()
        session.move(Event.RELEASE)
        listen(session)

    def _let_go(self) -> None:
        session = self.session
        session.pin = None
        session.clients.links.unpin(self.link, self.clean)
        session.flow.release(Reason.PIN)


def listen(session: Session) -> None:
    """With RESP3, go over to the reserved link once nothing is pending: Redis pushes to the id it has."""
    link = session.reserved
    if link is None or session.protocol != 3 or session.state is not State.RELAY or not session.ready():
        return
    session.reserved = None
    session.move(Event.PIN)
    session.pin = Pin(session, link)
    session.pin.listen()
