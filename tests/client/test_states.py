"""Every state with every event: the table, the picture, and what is illegal."""

import pytest

from proxy.client import states
from proxy.client.states import TRANSITIONS, Event, IllegalEvent, State, move
from proxy.resp.errors import PannierError

EXPECTED = {
    "RELAY": "WAIT:WAITING PIN:PINNED CLOSE:CLOSING LOST:CLOSED",
    "WAITING": "RESUME:RELAY PIN:PINNED CLOSE:CLOSING LOST:CLOSED",
    "PINNED": "RELEASE:RELAY STREAM:STREAM BREAK:BROKEN CLOSE:CLOSING LOST:CLOSED",
    "STREAM": "WAIT:WAITING TUNNEL:TUNNEL CLOSE:CLOSING LOST:CLOSED",
    "TUNNEL": "CLOSE:CLOSING LOST:CLOSED",
    "BROKEN": "MEND:RELAY CLOSE:CLOSING LOST:CLOSED",
    "CLOSING": "LOST:CLOSED",
    "CLOSED": "",
}


class TestEveryPair:
    @pytest.mark.parametrize("event", Event)
    @pytest.mark.parametrize("state", State)
    def test_is_as_written_here(self, state: State, event: Event) -> None:
        expected = dict(pair.split(":") for pair in EXPECTED[state.name].split())
        if event.name in expected:
            assert move(state, event) is State[expected[event.name]]
        else:
            with pytest.raises(IllegalEvent, match=f"{event.name} in state {state.name}"):
                move(state, event)

    def test_an_illegal_event_is_an_error_of_ours(self) -> None:
        assert issubclass(IllegalEvent, PannierError)

    def test_the_table_names_every_state(self) -> None:
        assert set(TRANSITIONS) == set(State)
        assert set(EXPECTED) == {state.name for state in State}

    def test_every_event_is_known_to_some_state_and_every_state_can_be_reached(self) -> None:
        assert {event for events in TRANSITIONS.values() for event in events} == set(Event)
        reached = {State.RELAY} | {after for events in TRANSITIONS.values() for after in events.values()}
        assert reached == set(State)

    def test_every_open_state_can_end(self) -> None:
        for state in set(State) - {State.CLOSING, State.CLOSED}:
            assert move(state, Event.CLOSE) is State.CLOSING
            assert move(state, Event.LOST) is State.CLOSED


class TestThePicture:
    def test_shows_every_state_and_event(self) -> None:
        picture = (states.__doc__ or "").partition("::\n")[2]
        for name in [state.name for state in State] + [event.name for event in Event]:
            assert name in picture
