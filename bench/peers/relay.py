"""Carries bytes to a server and back, each way later by a fixed time: a Redis that is not on this machine.

Every chunk that is read is put at the end of one queue with the moment it is to leave; as the time is the
same for all, the queue is in order of leaving, and any number of chunks are on their way at once. The end of
a stream is a chunk too. What the receiver's socket does not take waits beside it; a sender with much on its
way is not read from until there is less, so memory is bounded.

asyncio's and uvloop's timers count in milliseconds, as epoll's timeout does in Python. So it sleeps in
select(), which counts in microseconds, on the epoll descriptor alone.
"""

from __future__ import annotations

import argparse
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from bench.peers.openloop import WAKE, clock, wake_exactly
from bench.servers import HOST

RECEIVE = 1 << 16
HIGH, LOW = 1 << 22, 1 << 21
"""Bytes on their way from one sender at which it is no longer read from, and at which it is again."""


class End:
    """One socket of a pair: bytes read from it go to its `peer`."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = link
        self.number = link.fileno()
        self.peer = self

        # What comes from here.
        self.ended = False
        """Whether all has been read."""
        self.held = 0
        """Bytes read here and not yet taken by the peer's socket."""
        self.paused = False

        # What goes here.
        self.unsent = bytearray()
        self.ending = False
        """Whether nothing comes after that."""
        self.shut = False
        """Whether the receiver has been told so."""

        self.closed = False
        self.interest = 0
        """What epoll watches for."""


class Relay:
    """Accepts clients and joins each to a connection of its own to the upstream."""

    def __init__(self, listen: int, upstream: int, delay: float) -> None:
        self.upstream = upstream
        self.delay = delay
        """Seconds, each way."""
        self._way: deque[tuple[float, End, bytes]] = deque()
        """When to leave, from whom, what; nothing is the end of the stream."""
        self._listener = socket.create_server((HOST, listen), backlog=256)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._ends: dict[int, End] = {}

    def serve(self) -> None:
        """Carry until the process is ended."""
        while True:
            wait = self._way[0][0] - clock() - WAKE if self._way else None
            if wait is None or wait > 0:
                select.select([self._poll], [], [], wait)
            for number, events in self._poll.poll(0):
                if number == self._listener.fileno():
                    self._accept()
                elif end := self._ends.get(number):
                    self._handle(end, events)
            self._deliver()

    def close(self) -> None:
        """Close every socket at once."""
        for end in list(self._ends.values()):
            self._close(end)
        self._listener.close()
        self._poll.close()

    # --- Pairs

    def _accept(self) -> None:
        """Take a client and connect to the upstream for it; without an upstream it is closed."""
        try:
            client = self._listener.accept()[0]
        except OSError:
            return
        try:
            server = socket.create_connection((HOST, self.upstream), timeout=2.0)
        except OSError:
            client.close()
            return
        one, other = End(client), End(server)
        one.peer, other.peer = other, one
        for end in (one, other):
            self._ends[end.number] = end
            self._watch(end)

    def _watch(self, end: End) -> None:
        """Have epoll tell what matters now; of who is taken out it does not tell a hang-up either."""
        reads = 0 if end.ended or end.paused else select.EPOLLIN
        wanted = 0 if end.closed else reads | (select.EPOLLOUT if end.unsent else 0)
        if wanted == end.interest:
            return
        if not wanted:
            self._poll.unregister(end.number)
        elif end.interest:
            self._poll.modify(end.number, wanted)
        else:
            self._poll.register(end.number, wanted)
        end.interest = wanted

    def _close(self, end: End) -> None:
        """Close a pair; what is still on its way is lost."""
        for each in (end, end.peer):
            if not each.closed:
                each.closed = True
                self._watch(each)
                del self._ends[each.number]
                each.socket.close()

    # --- Bytes

    def _handle(self, end: End, events: int) -> None:
        """What epoll tells of a socket; errors show when it is used."""
        if events & ~select.EPOLLOUT and end.interest & select.EPOLLIN:
            self._read(end)
        if events & ~select.EPOLLIN and end.unsent:
            self._flush(end)

    def _read(self, end: End) -> None:
        """Put what is there on its way."""
        try:
            data = end.socket.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._way.append((clock() + self.delay, end, data))
        end.held += len(data)
        end.ended = not data
        end.paused = end.held >= HIGH
        if end.ended or end.paused:
            self._watch(end)

    def _deliver(self) -> None:
        """Hand over what has been on its way for long enough."""
        way, now = self._way, clock()
        while way and way[0][0] <= now:
            _, source, data = way.popleft()
            if source.closed:
                continue
            target = source.peer
            if data:
                self._send(target, data)
            else:
                target.ending = True
                self._end(target)

    def _send(self, end: End, data: bytes) -> None:
        """Send, or keep what the socket does not take."""
        if end.unsent:
            end.unsent += data
            return
        if (sent := self._pass_on(end, data)) < len(data) and not end.closed:
            end.unsent += data[sent:]
            self._watch(end)

    def _flush(self, end: End) -> None:
        """Try again what was kept."""
        del end.unsent[: self._pass_on(end, end.unsent)]
        if not end.closed and not end.unsent:
            self._watch(end)
            self._end(end)

    def _pass_on(self, end: End, data: bytes | bytearray) -> int:
        """How many bytes the socket took, which makes room for more of the sender's; closes a broken pair."""
        try:
            sent = end.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._close(end)
            return 0
        source = end.peer
        source.held -= sent
        if source.paused and source.held <= LOW:
            source.paused = False
            self._watch(source)
        return sent

    def _end(self, end: End) -> None:
        """Tell the receiver that nothing comes any more, when that is so; a pair that is silent is closed."""
        if not end.ending or end.unsent or end.shut:
            return
        end.shut = True
        with suppress(OSError):
            end.socket.shutdown(socket.SHUT_WR)
        if end.peer.shut:
            self._close(end)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry bytes to a port of this machine and back, each way later by some time; prints its own port."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.relay", description=main.__doc__)
    parser.add_argument("port", type=int, help="to listen on; 0: any")
    parser.add_argument("upstream", type=int, help="port of the server")
    parser.add_argument("delay", type=float, help="milliseconds, each way")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    wake_exactly()
    relay = Relay(options.port, options.upstream, options.delay / 1000)
    print(relay.port, flush=True)
    try:
        relay.serve()
    finally:
        relay.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
