"""A client's session: its bytes in, its replies out, in order.

The order of a client's replies is kept by three rules. On the shared link the FIFO keeps it. A command that
takes another path waits until no reply is pending there (`WAITING`), and the shared link is used again only
when nothing is owed on the other path. What the sidecar answers itself it writes only when nothing is owed.

`data_received` is the hot path. While nothing is pending, a chunk is first looked up in the table of the LRU
tier, request by request (`reading`): what is found never reaches the patterns, the parser or the link. A
chunk of complete, canonical, stateless commands is then recognised by two calls into the regular expression
engine and submitted as it came. Everything else is buffered and taken command by command, by a method for
each state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, cast

from proxy.client import admission, hits, homes, journal, local, own, pinning, reading, retiring, sharing
from proxy.client.dispatch import LOCAL, Route, link_protocol
from proxy.client.flow import Flow, Reason, in_pieces
from proxy.client.homes import NO_SHELF
from proxy.client.pin import Pin, listen
from proxy.client.spaces import Space
from proxy.client.states import Event, State, move
from proxy.client.work import Work
from proxy.resp import encode
from proxy.resp.downgrade import Shape, lower_nulls
from proxy.resp.errors import ProtocolError, UpstreamError
from proxy.resp.requests import LARGE, LargeFrame, RequestParser
from proxy.tier.rules import marks
from proxy.tier.shelf import Shelf
from proxy.upstream.caller import RUN, Keys
from proxy.upstream.link import LinkKey
from proxy.upstream.pinned import PinnedLink
from proxy.upstream.shared import LinkState, SharedLink
from proxy.upstream.sockets import set_keepalive
from proxy.upstream.tls import TLS_FIRST

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.meter import Meter

_WAITING_HIGH = 512 * 1024
"""Bytes that may wait behind a command under way before reading stops; with the chunk that exceeds it, this
is less than the least `query_buffer_limit`."""
_LOCAL_LIMIT = 1024 * 1024
"""Longest command, in bytes, that the sidecar answers itself."""
_OUTPUT_HIGH = 1024 * 1024
"""Unsent reply bytes above which no further commands are taken."""
_PENDING_HIGH = 16384
"""Commands in flight above which no further ones are taken."""
_PIPELINED = 256
"""Bytes from which a chunk counts as a pipeline, so that it need not be looked for its second star."""
_STAR = 0x2A
_ATTACKS = frozenset({b"host:", b"post"})


class Session:
    """One client connection. Implements `upstream.caller.Caller` and `tier.flights.Waiter`.

    An `asyncio.Protocol` in all but its bases: with one that is not compiled it could be none that is.
    """

    __slots__ = (
        "_address",
        "_depth",
        "_patterns",
        "_whole",
        "arriving",
        "attached",
        "buffer",
        "bypass",
        "clients",
        "commands",
        "created",
        "database",
        "discarding",
        "draining",
        "eof",
        "farewell",
        "find",
        "flow",
        "hits",
        "hits_before",
        "home",
        "id",
        "identity",
        "idle_mark",
        "idle_since",
        "info",
        "link",
        "log_at",
        "meter",
        "name",
        "origin",
        "parser",
        "pending",
        "pin",
        "protocol",
        "relay",
        "relaying",
        "reserved",
        "shelf",
        "skip_chunks",
        "skip_next",
        "space",
        "state",
        "strikes",
        "table",
        "task",
        "transport",
        "work",
        "write",
    )  # fmt: skip

    link: SharedLink
    """The shared link in use: `home`, or beside it one of the client's own protocol."""
    home: SharedLink

    def __init__(self, clients: Clients, session_id: int, space: Space) -> None:
        # Whom it belongs to.
        self.clients = clients
        self.id = session_id
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.write: Callable[[bytes], object] = _discard
        """Takes bytes for the client; the transport's own method while there is one."""
        self._address = ""
        """Where it is, with TLS: such a transport forgets when it is lost."""
        self.relay: Callable[[bytes], object] = _discard
        """Takes reply bytes as Redis sent them over `link`."""
        self.attached = False
        """Whether it has been at home on a link, and so has one."""
        # What it is doing.
        self.state = State.RELAY
        self.relaying = False
        """Whether `data_received` may submit at once: nothing stands in the way."""
        self.buffer = b""
        """Bytes received and not taken yet."""
        self.shelf: Shelf = NO_SHELF
        """What may answer reads."""
        self.table = NO_SHELF.table(2)
        self.find = self.table.find
        self.hits = 0
        """Reads answered from memory; not among `commands`."""
        self.log_at = 0
        """`hits` from which the next ones are to be logged."""
        self.bypass = False
        """Whether the client wants its reads answered by Redis (SIDECAR BYPASS ON)."""
        self.strikes = self.hits_before = 0
        """How often a pipeline was looked up in vain of late, and `hits` when it last was (`reading`)."""
        self.skip_chunks = self.skip_next = 0
        """Pipelined chunks not to be looked up, as little was found in the last one that was; and how many it
        is the next time (`reading`)."""
        self.pending = 0
        """Replies to come over the shared link."""
        self.draining = False
        self.farewell = b""
        """What to write before closing, once nothing is pending; what the client still sends is ignored."""
        self.eof = False
        """Whether the client has closed its sending side."""
        self.pin: Pin | None = None
        self.arriving: admission.Arrival | None = None
        """A large command of which all is waited for; `buffer` is empty meanwhile."""
        self.discarding: LargeFrame | None = None
        """A large command whose rest is not wanted any more."""
        self.reserved: PinnedLink | None = None
        """A pinned link whose id another client has been told; used at the next pin."""
        self.task: asyncio.Task[None] | None = None
        self.work: Work | None = None
        """What the task does, if the client ends that by leaving."""
        # What the client has said of itself.
        self.origin = self.space = space
        """The key space it lives in, and began in."""
        self.meter: Meter | None = None
        """What holds it to its tenant's operations per second, if there is a limit."""
        self.identity = clients.identity
        self.database = clients.database
        self.protocol = 2
        self.name = b""
        self.info: dict[str, bytes] | None = None
        """CLIENT SETINFO's lib-name and lib-ver."""
        # What is counted.
        self.commands = 0
        self.created = time.monotonic()
        self.idle_mark = 0
        """`commands` when the sweeper last looked."""
        self.idle_since = self.created
        # Tools, bound once.
        self.parser = RequestParser(clients.settings.proto_max_bulk_len)
        self._patterns = space.patterns
        self._depth, self._whole = self._patterns.wholes[-1]
        """The next chunk is expected to hold as many requests as the last one, if that is a run's size."""

    # --- asyncio callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called once by the loop."""
        self.transport = cast(asyncio.Transport, transport)
        self.flow = Flow(self.transport)
        if self.tls:
            self._address = self.clients.address(transport, "peername")
            self.write = in_pieces(self.transport.write)
        else:
            self.write = self.transport.write
        self.transport.set_write_buffer_limits(high=_OUTPUT_HIGH)
        journal.connected(self)
        set_keepalive(transport, self.clients.settings.tcp_keepalive)
        if refusal := self.clients.admit(self):
            self.write(refusal)
            self.finish()
            return
        homes.settle_in(self, self.clients.links.attach(self.home_key))
        self.attached = True
        self.refresh()

    def data_received(self, data: bytes) -> None:
        """Take a chunk of the client's bytes. The hot path."""
        if self.relaying:
            if not self.pending and (now := monotonic()) < self.shelf.until:
                taken = 0
                if len(data) < _PIPELINED and data[0] == _STAR:
                    reply = self.find(data[1:])
                    if reply is not None:
                        self.write(reply)
                        self.hits += 1
                        if self.hits > self.log_at:
                            hits.count(self, [data[1:]], 0, now)
                        return
                    if data.find(b"*", 1) < 0:
                        taken = reading.ask_one(self, data, data[1:])
                    else:
                        taken = self._answer_chunk(data, now)
                else:
                    taken = self._answer_chunk(data, now)
                if taken == len(data):
                    return
                if taken:
                    data = data[taken:]
                    if not self.relaying:
                        self._receive(data)
                        return
            elif not self.pending and self._ask_again(data):
                self.data_received(data)
                return
            n = self._depth if self._whole(data) is not None else self._recount(data)
            if n:
                self.run(n, data)
                return
        self._receive(data)

    def _answer_chunk(self, data: bytes, now: float) -> int:
        """Answer what a chunk asks as far as the tier can; how many of its bytes have been dealt with.

        `now`: when it was taken.
        """
        parts = data.split(b"*")
        if parts.pop(0):
            return 0
        table = self.table.replies
        try:
            # Faster than a loop or map: two and more keys are looked up by one call into C.
            replies = itemgetter(*parts)(table) if len(parts) > 1 else (table[parts[0]],)
        except KeyError:
            return reading.ask(self, data, parts)
        self.write(b"".join(replies))
        self.hits += len(parts)
        if self.hits > self.log_at:
            hits.count(self, parts, 0, now)
        return len(data)

    def _ask_again(self, data: bytes) -> bool:
        """Find out whether the shelf may be asked again, now that a chunk has come."""
        if self.skip_chunks and (len(data) > _PIPELINED or data.find(b"*", 1) > 0):
            self.skip_chunks -= 1
            return False
        if self.shelf is NO_SHELF and self.home.tracking is not None and not self.bypass:
            homes.settle_in(self, self.home)
        return self.shelf.vouch(monotonic())

    def skip(self, chunks: int) -> None:
        """Look up none of the next pipelined chunks: they would only cost."""
        self.skip_chunks = chunks
        self.shelf = NO_SHELF

    def pause_writing(self) -> None:
        """Called by the loop: the client does not read."""
        self.hold(Reason.OUTPUT)
        self.clients.stalled[self] = time.monotonic()
        if self.pin is not None:
            self.pin.link.pause(True)

    def resume_writing(self) -> None:
        """Called by the loop: the client has read."""
        self.clients.stalled.pop(self, None)
        if self.pin is not None:
            self.pin.link.pause(False)
        self.release(Reason.OUTPUT)

    def eof_received(self) -> bool:
        """Take the end of the client's bytes: what it has asked is still answered, unless it blocks."""
        self.eof = True
        self.clients.leases.hurry(self)
        self._give_up_work()
        if self.pin is not None:
            self.pin.leave()
        if self.state is State.CLOSED or not self.owes:
            return False
        self.draining = True
        return not self.tls  # with TLS the end of one side is that of both, as it is at Redis

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the client is gone: its replies in flight are dropped where they arrive."""
        journal.say(self, logging.DEBUG, "client_gone", "disconnected")
        self.hush()
        self.relaying = False
        self.buffer = b""
        admission.give_up(self)
        if self.state is not State.CLOSED:
            self.state = move(self.state, Event.LOST)
        if self.task is not None:
            self.task.cancel()
        if self.pin is not None:
            self.pin.drop()
        if self.reserved is not None:
            self.clients.links.unpin(self.reserved, False)
            self.reserved = None
        if self.attached:
            homes.leave_side(self)
            self.clients.links.detach(self.home)
        self.table.users -= 1
        self.clients.leave(self)

    # --- upstream.caller.Caller

    def drained(self) -> None:
        """Hear that nothing is pending on the shared link."""
        self.draining = self.eof
        if self.farewell:
            self.dismiss()
        elif self.state is State.WAITING and self.task is None:
            self.flow.release(Reason.PENDING)
            self.move(Event.RESUME)
            if self.buffer or self.flow.reasons or self.reserved is not None:
                listen(self)
                self.consume()
            else:
                self.refresh()
        elif self.flow.reasons & Reason.PENDING:
            self.release(Reason.PENDING)
        if self.eof or self.clients.retiring:
            # Not at once: this may be called while commands are being taken.
            asyncio.get_running_loop().call_soon(self.end_if_done)

    def cut(self) -> None:
        """Hear that a reply broke off: only closing tells the client so."""
        self.abort("upstream connection broke in the middle of a reply")

    def owners(self) -> Collection[object]:
        """Nobody but this."""
        return (self,)

    def hold_back(self, link: SharedLink) -> None:
        """Hear that Redis does not keep up."""
        self.hold(Reason.LINK)

    def go_on(self) -> None:
        """Hear that Redis keeps up again."""
        self.release(Reason.LINK)

    @property
    def served(self) -> int:
        """Commands taken so far."""
        return self.commands + self.hits

    # --- tier.flights.Waiter

    def take(self, reply: bytes) -> None:
        """Take one whole reply, in the client's protocol."""
        self.take_all(1, reply)

    def take_all(self, n: int, replies: bytes) -> None:
        """Take `n` whole replies, in the client's protocol."""
        try:  # noqa: SIM105 - a context manager would cost every reply 0.3 µs
            self.write(replies)
        except RuntimeError:
            pass  # see `upstream.caller.Caller.relay`
        self.pending -= n
        if self.draining and not self.pending:
            self.drained()

    def take_piece(self, piece: bytes, skip: int) -> None:
        """Take a piece of a long RESP3 reply, of which `skip` bytes belong to a string begun before."""
        if self.protocol != 3 and b"_\r\n" in piece:
            piece = lower_nulls(piece, skip)
        with contextlib.suppress(RuntimeError):  # see `upstream.caller.Caller.relay`
            self.write(piece)

    def take_end(self) -> None:
        """Hear that the reply which came in pieces is complete."""
        self.take_all(1, b"")

    # --- for the other parts of the client room

    @property
    def key(self) -> LinkKey:
        """Which links of its own, and which untracked shared one, serve this session."""
        return LinkKey(self.identity, self.database, self.protocol)

    @property
    def home_key(self) -> LinkKey:
        """Which shared link serves this session."""
        protocol = link_protocol(Shape.PLAIN, self.protocol, self.clients.tier is not None)
        return LinkKey(self.identity, self.database, protocol, self.space.name)

    @property
    def barred(self) -> bool:
        """Whether the client has to authenticate before anything else."""
        return self.link.auth_required or self.space.locked

    def move(self, event: Event) -> None:
        """Change state. Raises IllegalEvent."""
        self.state = move(self.state, event)
        self.relaying = False

    def refresh(self) -> None:
        """Work out whether the hot path is open, after anything it depends on may have changed."""
        self.parser.unauthenticated = self.barred
        self.relaying = (
            self.state is State.RELAY
            and not self.buffer
            and self.arriving is None
            and self.discarding is None
            and not self.flow.reasons
            and self.link is self.home
            and not self._loose
            and self.link.state is not LinkState.CONNECTING
            and not self.parser.unauthenticated
        )

    @property
    def _loose(self) -> bool:
        """Whether every command's keys must be known (see `Tier.loose`)."""
        tier = self.clients.tier
        return tier is not None and tier.loose

    def hold(self, reason: Reason) -> None:
        """Take no more commands while `reason` holds."""
        self.flow.hold(reason)
        self.relaying = False

    def release(self, reason: Reason) -> None:
        """Take commands again if nothing else holds them."""
        if self.flow.release(reason):
            self.consume()

    def run(self, n: int, data: bytes) -> None:
        """Send a run of plain commands (`Dispatcher.patterns`) over the shared link."""
        if self.link.refusing:
            self._receive(data)  # one by one: some may be answered all the same
            return
        tier, space = self.clients.tier, self.space
        keys: Keys = None
        if space.namespace is not None:
            data, keys = space.real_run(n, data)
        if tier is not None:
            if keys is None and tier.shows(space.prefix):
                keys = marks(self.clients.dispatcher.written(data))
                if not keys:
                    self.submit(n, data)
                    return
            if keys is not None:
                tier.drop(keys, space.prefix)
            else:
                keys = RUN
        self.submit(n, data, keys)
        space.writes.run(n, data)
        if self.clients.tells_writes:
            self.clients.tell(self, "write", space.keys_written(n, data))

    def real(self, n: int, data: bytes) -> bytes:
        """A run of `n` reads as Redis is to get it."""
        return data if self.space.namespace is None else self.space.real(n, data)

    def submit(self, n: int, data: bytes, keys: Keys = None) -> None:
        """Send `n` stateless commands over the shared link; `keys` are those whose change it may reveal."""
        self.commands += n
        self.expect(n)
        self.link.submit(self, n, data, keys)

    def expect(self, n: int) -> None:
        """Note that `n` replies more are to come over the shared link."""
        self.pending += n
        if self.pending > _PENDING_HIGH:
            self._brake()

    def use_patterns(self) -> None:
        """Recognise what goes up without being parsed by its space's patterns, which are new."""
        self._patterns = self.space.patterns
        self._depth, self._whole = self._patterns.wholes[-1]

    def lower(self, data: bytes) -> None:
        """Relay a slice of plain RESP3 replies to a RESP2 client."""
        wire = self.home.wire
        self.write(lower_nulls(data, wire.skipped if wire else 0) if b"_\r\n" in data else data)

    def start(self, work: Coroutine[None, None, bytes], arguments: list[bytes]) -> None:
        """Wait for an answer that takes time; what the client sends meanwhile waits behind it."""
        self.move(Event.WAIT)
        self.undertake(work, arguments)

    def undertake(self, work: Coroutine[None, None, bytes], arguments: list[bytes]) -> None:
        """Have `resume` called with an answer that takes time."""
        self.task = asyncio.get_running_loop().create_task(self._answer(work, arguments))
        self.task.add_done_callback(lambda task: work.close())  # should the client leave before it begins
        if self.eof:
            self._give_up_work()

    def _give_up_work(self) -> None:
        """Stop what a client waits for that sends no more, if it is to end then."""
        if self.task is not None and self.work is not None and self.work.ends:
            self.task.cancel()
            self.task.add_done_callback(lambda task: self._stopped())

    def _stopped(self) -> None:
        if self.task is not None and self.work is not None:
            self.task = None
            self.resume(self.work.stopped())

    def finish(self) -> None:
        """Close once everything written has been sent."""
        if self.state not in (State.CLOSING, State.CLOSED):
            self.move(Event.CLOSE)
        self.transport.close()

    def hush(self) -> None:
        """Send nothing more but what has been written."""
        self.write = self.relay = _discard

    def abort(self, why: str, level: int = logging.INFO, event: str = "client_closed") -> None:
        """Close now."""
        journal.say(self, level, event, "closed", why)
        self.hush()
        if self.state not in (State.CLOSING, State.CLOSED):
            self.move(Event.CLOSE)
        self.transport.abort()

    def depart(self) -> None:
        """Close as soon as what the client has asked is answered; at once if it blocks or listens."""
        self.eof = self.draining = True
        self.clients.leases.hurry(self)
        self._give_up_work()
        self.end_if_done()

    @property
    def unix(self) -> bool:
        """Whether the client came over a unix socket."""
        return not self.tls and not isinstance(self.transport.get_extra_info("peername"), tuple)

    @property
    def tls(self) -> bool:
        """Whether the client speaks TLS."""
        return self.transport.get_extra_info("sslcontext") is not None

    @property
    def gone(self) -> bool:
        """Whether nothing reaches the client any more."""
        return self.write is _discard

    @property
    def upstream_id(self) -> int | None:
        """Redis' id of the link that is this session's own; None while it has none."""
        link = self.pin.link if self.pin is not None else self.reserved
        return link.client_id if link is not None else None

    @property
    def address(self) -> str:
        """The client's address as CLIENT LIST shows it."""
        return self._address or self.clients.address(self.transport, "peername")

    # --- taking commands

    def _recount(self, data: bytes) -> int:
        """Count the requests of a chunk that is not what was expected; 0 if it needs the parser."""
        n = self._patterns.count(data)
        for size, fullmatch in self._patterns.wholes:
            if n == size:
                self._depth, self._whole = size, fullmatch
        return n

    def _brake(self) -> None:
        """Take no more commands until those in flight are answered."""
        self.draining = True
        self.hold(Reason.PENDING)

    def _receive(self, data: bytes) -> None:
        if self.farewell or self.state in (State.CLOSING, State.CLOSED):
            return
        if data.startswith(TLS_FIRST) and not self.served and not self.buffer:
            self._refuse_tls()
            return
        if self.state is State.TUNNEL and self.pin is not None:
            self.pin.link.send(data)
            return
        if self.arriving is not None:
            try:
                data = admission.arrive(self, data)
            except ProtocolError as error:
                self._reject(error)
                return
            if not data:
                return
        self.buffer = self.buffer + data if self.buffer else data
        self.consume()
        if len(self.buffer) > self.clients.settings.query_buffer_limit:
            self.clients.kill(self, f"query buffer over {self.clients.settings.query_buffer_limit} bytes")
        elif len(self.buffer) > _WAITING_HIGH and self._waits:
            self.hold(Reason.BUFFER)

    @property
    def _waits(self) -> bool:
        """Whether commands may wait behind another one."""
        answers = self.pin is not None and self.pin.answering is not None
        return answers or self.state in (State.WAITING, State.PINNED)

    def consume(self) -> None:
        """Take what is buffered, as far as the state allows."""
        if self.state is not State.WAITING:
            self.flow.release(Reason.BUFFER)
        try:
            self._take_all()
        except ProtocolError as error:
            self._reject(error)
        except Exception:
            journal.failed(self)
            self.abort("internal error")
        if self.state is not State.CLOSED:
            self.refresh()
            self.end_if_done()

    def _take_all(self) -> None:
        buf, pos = self.buffer, 0
        try:
            while pos < len(buf) and not self.flow.reasons:
                after = self._take(buf, pos)
                if after == pos:
                    return
                pos = after
        finally:
            self.buffer = buf[pos:] if self.state not in (State.CLOSING, State.CLOSED) else b""

    def _take(self, buf: bytes, pos: int) -> int:
        """Take what can be taken at `pos`; the position after it, or `pos` if nothing can."""
        state = self.state
        if state is State.RELAY:
            return self._take_relay(buf, pos)
        if self.pin is not None and state in (State.PINNED, State.STREAM, State.BROKEN):
            return self.pin.take(buf, pos)
        if self.pin is not None and state is State.TUNNEL:
            self.pin.link.send(buf[pos:])
            return len(buf)
        return pos

    def _take_relay(self, buf: bytes, pos: int) -> int:
        if not self.pending:
            homes.leave_side(self)
            if self.shelf is NO_SHELF and self.link.refusing:
                homes.settle_in(self, self.home)
        if not self.barred and self.discarding is None and self.link is self.home:
            window, at = (buf, pos) if self.meter is None else (self.meter.window(buf, pos), 0)
            if window and (taken := self._take_plain(window, at)):
                return pos + taken
        self.parser.unauthenticated = self.barred
        if self.discarding is not None:
            return self._discard_rest(self.discarding, buf, pos)
        request = self.parser.parse(buf, pos)
        if request is None:
            return self._take_large(buf, pos)
        if not request.arguments:
            return request.end
        if admission.waits(self, request.arguments):
            return pos
        route = self._route(request.arguments)
        refusal = admission.refusal(self, route, request.arguments)
        if refusal:
            return request.end if admission.refuse(self, refusal) else pos
        # As multibulk, an inline request could break the tighter limits that hold for such a link as well.
        unchanged = self.link.auth_required and buf[pos] != _STAR
        data = buf[pos : request.end] if unchanged else request.frame(buf)
        if route is Route.SHARED:
            return request.end if sharing.share(self, request.arguments, data) else pos
        if not self.ready():
            return pos
        self.commands += 1
        self._special(route, request.arguments, data)
        return request.end

    def _take_plain(self, buf: bytes, pos: int) -> int:
        """Take what memory can answer at `pos`, or a run of plain commands; how many bytes that was."""
        if taken := reading.ask_buffer(self, buf, pos):
            return taken
        if self._loose or self.link.refusing:
            return 0
        end, n = self._patterns.prefix(buf, pos)
        if n:
            self.run(n, buf[pos:end])
        return end - pos if n else 0

    def _route(self, arguments: Sequence[bytes]) -> Route:
        dispatcher = self.clients.dispatcher
        route = dispatcher.route(arguments)
        space = self.space
        guest = space.tenant is not None and dispatcher.name(arguments) == "acl|whoami"
        if guest or dispatcher.local_in(arguments, space.namespace is not None):
            return Route.LOCAL  # also for who has not authenticated: `local.answer` sees to that
        if dispatcher.disguised(arguments):
            return Route.PROBE  # it may do more to its connection than its name says
        if self.link.auth_required and dispatcher.name(arguments) not in local.WITHOUT_AUTH:
            # Redis answers NOAUTH; should it just have ceased to, no state may get into the shared link.
            return Route.SHARED if route is Route.SHARED else Route.PROBE
        if arguments[0].lower() in _ATTACKS:
            why = "an HTTP request; an attack by a browser?"
            journal.say(self, logging.WARNING, "client_attack", "closed", why)
            self.abort("HTTP request")
            return Route.LOCAL  # nothing of it goes to Redis, which would close the link
        return route

    def ready(self) -> bool:
        """Whether nothing is pending on the shared link; otherwise the session waits for that."""
        if not self.pending or self.state is not State.RELAY:
            return True
        self.draining = True
        self.move(Event.WAIT)
        return False

    def _special(self, route: Route, arguments: list[bytes], data: bytes) -> None:
        if self.state is State.CLOSING:
            return
        if route is Route.LOCAL:
            came = monotonic()
            answer = local.answer(self, self.clients.dispatcher.name(arguments), arguments)
            if isinstance(answer, bytes):
                self.write(answer)
                self.clients.slowlog.local(self, arguments, came)
            elif answer is not None:
                self.start(answer, arguments)
            return
        pinning.send(self, route, arguments, data, None)

    def _discard_rest(self, frame: LargeFrame, buf: bytes, pos: int) -> int:
        """Step over the rest of a large command that has been answered with an error already."""
        end = frame.advance(buf, pos)
        if frame.done:
            self.discarding = None
        return end

    def _take_large(self, buf: bytes, pos: int) -> int:
        """Take the first part of a command that is too large to wait for."""
        if len(buf) - pos < LARGE:
            return pos
        known = self.parser.large(buf, pos)
        if known is None:
            return pos
        arguments, frame, end = known
        if admission.waits(self, arguments):
            return pos
        if self.space.translates or admission.spent(self):
            refusal = admission.judge_large(self, arguments, frame)
            if refusal is None:
                return admission.wait_for_all(self, frame, buf, pos, end)
            if refusal:
                if not admission.refuse(self, refusal):
                    return pos
                self.discarding = frame
                return end
        route = self._route(arguments)
        if route is Route.LOCAL or self.clients.dispatcher.name(arguments) in LOCAL:
            if len(buf) - pos > _LOCAL_LIMIT:
                raise ProtocolError("too big a request for a command that pannier answers")
            return pos
        if not self.ready():
            return pos
        self.commands += 1
        pinning.send(self, Route.ONCE if route is Route.SHARED else route, arguments, buf[pos:end], frame)
        return end

    async def _answer(self, work: Coroutine[None, None, bytes], arguments: list[bytes]) -> None:
        came = monotonic()
        try:
            reply = await work
        except UpstreamError as error:
            reply = error.reply
        except Exception:
            if arguments[0].lower() != b"sidecar":
                journal.failed(self)
                self.abort("internal error")
                return
            reply = own.failed(self)
        self.task = None
        self.clients.slowlog.local(self, arguments, came)
        self.resume(reply)

    def resume(self, reply: bytes) -> None:
        """Answer what was waited for, and go on."""
        self.work = None
        if self.pin is not None and self.pin.answering is not None:
            self.pin.answered_own(reply)
        elif self.state is State.WAITING:
            self.write(reply)
            self.move(Event.RESUME)
            listen(self)
            self.consume()

    def pinned_answered(self) -> None:
        """Hear that a command has been answered on a link of the client's own; see `tracing`."""

    # --- ending

    def _reject(self, error: ProtocolError) -> None:
        """Answer bytes that are no RESP, after what is pending, and close."""
        journal.say(self, logging.INFO, "client_protocol_error", "closed: protocol error", str(error))
        self.farewell = error.reply()
        self.buffer = b""
        if self.pending:
            self.draining = True
            if self.state is State.RELAY:
                self.move(Event.WAIT)
        elif self.pin is None or self.pin.last_replies():
            self.dismiss()

    def _refuse_tls(self) -> None:
        """Close what began with a handshake of TLS on a listener without: the parser would wait for more."""
        why = "it speaks TLS on a listener without; connect without, or let the listener end in ?tls=true"
        journal.say(self, logging.WARNING, "client_speaks_tls", "closed", why)
        self.farewell = encode.error("ERR pannier: this listener speaks no TLS")
        self.dismiss()

    def dismiss(self) -> None:
        """Say farewell and close."""
        with contextlib.suppress(RuntimeError):  # see `upstream.shared.Caller.write`
            self.write(self.farewell)
        self.finish()

    @property
    def owes(self) -> bool:
        """Whether replies are still to come for what the client has sent."""
        if self.pin is not None:
            return self.pin.owes
        relaying = self.state in (State.RELAY, State.WAITING)
        return relaying and bool(self.pending or self.task or self.flow.reasons)

    def end_if_done(self) -> None:
        """Close if the client has closed its side and nothing is owed any more, or Pannier is to stop."""
        if self.eof and not self.owes and self.state not in (State.CLOSING, State.CLOSED):
            self.finish()
        elif self.clients.retiring:
            retiring.see_off(self)


def _discard(data: bytes) -> None:
    """Take replies for a client that is gone."""
