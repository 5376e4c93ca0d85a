"""Several processes of Pannier at the same addresses: their parent (`workers` above 1).

The parent serves no client. It opens the sockets that clients connect to and keeps them, starts the workers
with theirs, and starts one again that has ended: who connects meanwhile comes to the others. It starts the
bundled redis-server if there is to be one, says when to read the settings again and when to stop, and answers
the operators, having asked the workers (`proxy.observe.together`).

A worker is the same program with the same arguments and a place (`proxy.places`). It takes no signals:
SIGINT, SIGTERM and SIGHUP are blocked there, since Ctrl-C reaches all processes of a terminal's group, and a
service manager may signal all of a service. What it is to do comes over a connection (`proxy.leash`), whose
end is that of the parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from proxy import announcing, hangup, logs, systemd
from proxy.certificates import Stamp, stamps
from proxy.events import fields
from proxy.kinds import show_duration
from proxy.leash import Leash, Stop
from proxy.listening import NONE_PASSED, Passed, anew, clear_away, listens, open_for_all, with_passed
from proxy.observe.admin import Admin
from proxy.observe.page import add_page
from proxy.observe.together import Crew, Together
from proxy.places import VARIABLE, Place, private
from proxy.reload import Load, with_live
from proxy.resp.errors import SettingsError, StartupError
from proxy.settings import Settings
from proxy.upstream.address import LONGEST_SOCKET_PATH, Listen
from proxy.upstream.embedded import EmbeddedRedis

log = logging.getLogger("pannier.workers")

FIRST_PAUSE = 0.1
"""Seconds before a worker that has ended is started again; each time twice as many."""
LAST_PAUSE = 10.0
LIVED = 30.0
"""Seconds after which a worker that ends has lived: the pauses begin anew."""
OVERTIME = 5.0
"""Seconds that a worker may take to end beyond `drain_delay` and `drain_timeout`."""
RELOAD_PATIENCE = 60.0
"""Seconds that a worker may take to read the settings again."""
_LOOK = 1.0
"""Seconds between two looks at the settings' files."""
_KILL_LIMIT = 5.0
"""Seconds that it may take until all are gone who are to end now."""
_LOOK_AGAIN = 0.05
"""Seconds between two looks at who is left of them."""
_TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CANNOT_START = (1, 2)
"""Exit statuses of a worker that will not do better the next time."""


async def run(settings: Settings, again: Load, config: str | None, arguments: Sequence[str]) -> int:
    """Have workers serve until SIGINT or SIGTERM; the exit status. Raises StartupError.

    `again` reads the settings once more, `config` is their file. `arguments`: of the command line.
    """
    output = logs.configure(settings.log_format, settings.log_level)
    logs.mind_loop(asyncio.get_running_loop())
    announcing.starting(settings, config)
    settings, passed = with_passed(settings)
    parent = Parent(settings, again, config, arguments)
    parent.take_signals()
    if (status := hangup.stopped()) is not None:
        return status
    async with contextlib.AsyncExitStack() as stack:
        summaries = asyncio.create_task(output.run())
        stack.callback(summaries.cancel)
        directory = _private_directory(settings.workers)
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        endings: list[asyncio.Future[Any]] = []
        upstream = bundled = ""
        if settings.upstream is None:
            embedded = await stack.enter_async_context(EmbeddedRedis())
            upstream, bundled = f"unix://{embedded.upstream.path}", embedded.version
            endings.append(asyncio.ensure_future(embedded.ended()))
            stack.callback(endings[-1].cancel)
        stack.callback(parent.close)
        await parent.open(passed)
        stack.push_async_callback(parent.kill)
        parent.prepare(directory, upstream, bundled)
        return await parent.serve(endings)


class Worker:
    """One worker as its parent sees it. Implements `observe.together.Worker`."""

    def __init__(self, number: int, directory: str, listen: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
        self.number = number
        self.path = private(directory, number)
        self.restarts = 0
        self.running = False
        """Whether it serves."""
        self.served = asyncio.Event()
        """Whether it ever has."""
        self.gone = False
        """Whether it has ended and is to be started again."""
        self.listen = listen
        self.addresses: list[str] = []
        self.banner = ""
        self.process: asyncio.subprocess.Process | None = None
        self.leash: Leash | None = None
        self.reloaded: asyncio.Future[str | None] | None = None
        """What comes of reading the settings again: what is wrong with them; None: it has ended instead."""

    def say(self, what: str, **more: object) -> None:
        """Tell it something, if it is there."""
        if self.leash is not None:
            self.leash.say(what, **more)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Hear what it says."""
        if message["what"] == "ready":
            self.addresses, self.banner = message["addresses"], message["banner"]
            self.running = True
            self.served.set()
        elif message["what"] == "reloaded":
            self._reloaded(message["trouble"])

    def ended(self) -> None:
        """Hear that its process has ended."""
        self.running = False
        self.process = self.leash = None
        self._reloaded(None)

    def _reloaded(self, trouble: str | None) -> None:
        if self.reloaded is not None and not self.reloaded.done():
            self.reloaded.set_result(trouble)


class Parent:
    """See the module's docstring."""

    def __init__(self, settings: Settings, again: Load, config: str | None, arguments: Sequence[str]) -> None:
        self._settings = settings
        self._again = again
        self._config = config
        self._arguments = arguments
        self._crew = Crew(settings)
        self._admin = Admin(settings)
        Together(self._crew).add_to(self._admin)
        add_page(self._admin)
        # What is kept for the workers.
        self._passed = NONE_PASSED
        self._sockets: list[tuple[Listen, list[list[socket.socket]]]] = []
        """Addresses, and the sockets there of each worker."""
        self._directory = self._upstream = self._bundled = ""
        self._secret = secrets.token_hex(16)
        self._workers: list[Worker] = []
        self._keepers: list[asyncio.Task[None]] = []
        """What keeps each worker running."""
        # What happens.
        self._stop = Stop()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The exit status, if it is known before all is done."""
        self._asked = asyncio.Event()
        """Whether the settings are to be read again."""
        self._beginning = asyncio.Lock()
        """Held while a worker is given the settings and cannot be told of others yet."""
        self._seen = self._look()

    # --- what there is to serve with

    def take_signals(self) -> None:
        """Stop on the first signal, end at once on the second; read the settings again on SIGHUP."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        if hangup.came():
            self._asked.set()

    def _signalled(self, number: int) -> None:
        if self._stop.is_set() and not self._status.done():
            self._status.set_result(128 + number)
        self._stop.signal = self._stop.signal or signal.Signals(number).name
        self._stop.set()

    async def open(self, passed: Passed) -> None:
        """Open all sockets. Raises StartupError if an address cannot be had."""
        self._passed = passed
        await self._admin.start(passed)
        for listen in self._settings.listen:
            self._sockets.append((listen, await open_for_all(listen, self._settings.workers, passed)))

    def _close_sockets(self) -> None:
        """Accept no more clients once the workers do not either."""
        for _, each in self._sockets:
            for sockets in each:
                for sock in sockets:
                    sock.close()

    def close(self) -> None:
        """Give back what is had for serving."""
        self._admin.close()
        self._close_sockets()
        for listen, _ in self._sockets:
            clear_away(listen, self._passed)

    def prepare(self, directory: str, upstream: str, bundled: str) -> None:
        """Take what the workers are to be told."""
        self._directory, self._upstream, self._bundled = directory, upstream, bundled
        for number in range(1, self._settings.workers + 1):
            self._workers.append(Worker(number, directory, self._listen_of(number)))
        self._crew.workers = {worker.number: worker for worker in self._workers}

    # --- life

    async def serve(self, endings: Sequence[asyncio.Future[Any]]) -> int:
        """Serve until one is to stop; the exit status. Raises StartupError if one of `endings` is that."""
        tasks = [asyncio.create_task(work) for work in (self._start(), self._watch())]
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        try:
            ends: list[asyncio.Future[Any]] = [stopped, self._status, *endings]
            while not any(end.done() for end in ends):
                await asyncio.wait([*ends, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in tasks if task.done()]:
                    tasks.remove(task)
                    task.result()  # whatever went wrong ends the parent
            for ending in endings:
                if ending.done() and isinstance(error := ending.result(), StartupError):
                    raise error
            for task in tasks:
                task.cancel()  # who stops neither begins to serve nor reads settings
            return await self._end()
        finally:
            for each in (*tasks, stopped):
                each.cancel()

    async def _start(self) -> None:
        """The first worker first: what keeps it from starting would keep them all."""
        for workers in (self._workers[:1], self._workers[1:]):
            self._keepers += [asyncio.create_task(self._keep(worker)) for worker in workers]
            await asyncio.gather(*[worker.served.wait() for worker in workers])
        first, number = self._workers[0], len(self._workers)
        if not logs.is_json(self._settings.log_format):
            print(self._banner(), flush=True)
        about: dict[str, object] = {"workers": number, "bundled": bool(self._bundled)}
        announcing.listening(self._settings, first.addresses, about)
        systemd.notify("READY=1", f"STATUS=serving {', '.join(first.addresses)} with {number} workers")

    def _banner(self) -> str:
        """The first worker's, with what is the parent's."""
        *lines, last = self._workers[0].banner.splitlines()
        lines.append(f"  workers    {len(self._workers)}")
        if self._admin.addresses or self._admin.trouble:
            lines.append(f"  admin      {self._admin.url or 'not served: its address is taken'}")
        return "\n".join([*lines, last])

    async def _keep(self, worker: Worker) -> None:
        """Keep a worker running, until one is to stop."""
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            began = time.monotonic()
            status = await self._live(worker)
            self._lost(worker)
            if self._stop.is_set():
                return
            if status in _CANNOT_START and not self._workers[0].served.is_set():
                if not self._status.done():
                    self._status.set_result(status)
                return
            if time.monotonic() - began >= LIVED:
                pause = FIRST_PAUSE
            log.error(
                "worker %d has ended (%s); it is started again in %s",
                worker.number, _why(status), show_duration(pause),
                extra=fields("worker_ended", worker=worker.number, status=status, pause=pause),
            )  # fmt: skip
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
            worker.restarts += 1

    def _lost(self, worker: Worker) -> None:
        """Hear that a worker has ended, or is about to; of one end several times."""
        worker.running, worker.gone = False, True
        self._share_out()

    def _share_out(self) -> None:
        """Have nobody wait for a worker that has ended while another serves: until it does again, its share
        of those who connect goes to the others. Called when either may have changed."""
        if self._stop.is_set() or not any(each.running for each in self._workers):
            return
        for worker in self._workers:
            if worker.gone:
                self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        """Close the queues that are a worker's alone; whoever waits there already has to connect again."""
        for _, each in self._sockets:
            mine = each[worker.number - 1]
            if sum(sockets is mine for sockets in each) > 1 or not any(map(listens, mine)):
                continue  # they are everybody's, or closed already
            try:
                each[worker.number - 1] = anew(mine)
            except OSError as error:
                about = fields("worker_keeps_its_queue", worker=worker.number, reason=error.strerror)
                log.warning("worker %d keeps its queue: %s", worker.number, error.strerror, extra=about)
        worker.listen = self._listen_of(worker.number)

    def _listen_of(self, number: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What a worker is told of the addresses."""
        return tuple(
            (str(address), tuple([sock.fileno() for sock in sockets[number - 1]]))
            for address, sockets in self._sockets
        )

    async def _live(self, worker: Worker) -> int:
        """Start a worker, and wait until it ends; its exit status, of a signal the negative number."""
        async with self._beginning:
            try:
                process, leash = await self._begin(worker)
            except OSError as error:
                about = fields("worker_not_started", worker=worker.number, reason=error.strerror)
                log.error("worker %d cannot be started: %s", worker.number, error.strerror, extra=about)
                return _CANNOT_START[0]
            worker.process, worker.leash = process, leash
        hearing = asyncio.create_task(leash.run())
        ending = asyncio.create_task(process.wait())
        if self._stop.is_set():
            worker.say("stop", signal=self._stop.signal)
        try:
            # A process that is killed loses this connection before those of its clients, which are younger:
            # when they connect again, nobody is to wait for it any more.
            await asyncio.wait([hearing, ending], return_when=asyncio.FIRST_COMPLETED)
            self._lost(worker)
            return await ending
        finally:
            hearing.cancel()
            ending.cancel()
            leash.close()
            worker.ended()

    async def _begin(self, worker: Worker) -> tuple[asyncio.subprocess.Process, Leash]:
        """Start the process of a worker, and the connection to it. Raises OSError."""
        worker.gone = False
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            with theirs, tempfile.TemporaryFile(dir=self._directory) as settings:
                pickle.dump(self._settings, settings)
                settings.seek(0)
                place = Place(
                    worker.number, len(self._workers), self._directory, theirs.fileno(), settings.fileno(),
                    worker.listen, self._secret, self._upstream, self._bundled, self._crew.draining,
                )  # fmt: skip
                process = await self._spawn(place)
            stack.pop_all()
        return process, Leash(ours, functools.partial(self._hear, worker), lambda: None)

    def _hear(self, worker: Worker, message: Mapping[str, Any]) -> None:
        worker.hear(message)
        if message["what"] == "ready":
            self._crew.tell(worker)
        self._share_out()

    async def _spawn(self, place: Place) -> asyncio.subprocess.Process:
        """Start the process of a worker. Raises OSError."""
        environment = {name: text for name, text in os.environ.items() if name != "NOTIFY_SOCKET"}
        kept = [number for _, numbers in place.listen for number in numbers]
        with _blocked():
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "proxy", *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                env=environment | {VARIABLE: place.told()},
                pass_fds=[place.control, place.settings, *kept],
            )  # fmt: skip

    # --- reading the settings again

    async def _watch(self) -> None:
        """Watch the files, and for who asks, for ever."""
        certificates = self._admin.certificates
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            if certificates is not None:
                certificates.tend(asked)
            if asked or self._look() != self._seen:
                self._seen = self._look()
                await self._roll("SIGHUP" if asked else "a file has changed")

    def _look(self) -> list[Stamp]:
        return stamps([self._config, self._settings.rules_file])

    async def _roll(self, why: str) -> None:
        """Have the workers read the settings again, one after the other; all keep the old ones if the first
        refuses them.

        Whoever is being started has been given those in force then, so it is told as well, and waited for.
        Whoever is yet to be started is given the new ones, once all others have been told.

        The parent reads them first: what changes after that is seen at the next look, and read again by all.
        (So is a file of rules that has just been named: it is another one than was looked at.)
        """
        try:
            new: Settings | SettingsError = await asyncio.to_thread(self._again)
        except SettingsError as error:
            new = error
        told: list[Leash] = []
        taken: set[int] = set()
        while True:
            async with self._beginning:
                worker = next((each for each in self._workers if each.leash not in (None, *told)), None)
                if worker is None or worker.leash is None:
                    break
            told.append(worker.leash)
            trouble = await self._tell(worker, why)
            if trouble:
                self._refused(why, worker.number, sorted(taken), trouble)
                return
            if trouble is not None:
                taken.add(worker.number)
        if isinstance(new, SettingsError):
            self._refused(why, 0, sorted(taken), str(new))
            return
        self._settings = self._crew.settings = with_live(self._settings, new)
        logs.set_level(self._settings.log_level)
        about = fields("workers_reloaded", why=why, workers=sorted(taken))
        log.info("%s: %d workers have read the settings again", why, len(taken), extra=about)

    async def _tell(self, worker: Worker, why: str) -> str | None:
        """Have a worker read the settings again: what is wrong with them, or nothing; None: it has ended."""
        worker.reloaded = asyncio.get_running_loop().create_future()
        worker.say("reload", why=why)
        try:
            async with asyncio.timeout(RELOAD_PATIENCE):
                return await worker.reloaded
        except TimeoutError:
            return f"it has not said within {show_duration(RELOAD_PATIENCE)} that it took them"

    def _refused(self, why: str, number: int, taken: list[int], trouble: str) -> None:
        who = f"worker {number} does" if number else "the parent does"
        others = "all others keep the old ones"
        if taken:
            others = f"those have them already: {', '.join(map(str, taken))}"
        about = fields("workers_not_reloaded", why=why, refused_by=number, taken=taken, reason=trouble)
        log.error("%s: %s not take the settings; %s: %s", why, who, others, trouble, extra=about)

    # --- the end

    async def _end(self) -> int:
        """Have the workers end in good order, or now if somebody wants that; the exit status."""
        if not self._status.done():
            log.info("stopping", extra=fields("stopping", signal=self._stop.signal))
            systemd.notify("STOPPING=1")
            self._crew.stopping = True
            self._close_sockets()
            for worker in self._workers:
                worker.say("stop", signal=self._stop.signal)
            for worker, keeper in zip(self._workers, self._keepers, strict=False):
                if worker.process is None:
                    keeper.cancel()
            everybody: asyncio.Future[Any] = asyncio.gather(*self._keepers, return_exceptions=True)
            ends: list[asyncio.Future[Any]] = [everybody, self._status]
            patience = self._settings.drain_delay + self._settings.drain_timeout + OVERTIME
            await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            left = [worker.number for worker in self._workers if worker.process is not None]
            if left and not self._status.done():
                about = fields("workers_killed", workers=left, seconds=patience)
                text = "workers that have not ended within %s are killed: %s"
                log.error(text, show_duration(patience), ", ".join(map(str, left)), extra=about)
        return self._status.result() if self._status.done() else 0

    async def kill(self) -> None:
        """End the workers that are still there, now; also one that is just being started."""
        self._stop.set()
        deadline = time.monotonic() + _KILL_LIMIT
        while (left := [keeper for keeper in self._keepers if not keeper.done()]) and (
            time.monotonic() < deadline
        ):
            for worker in self._workers:
                if worker.process is not None and worker.process.returncode is None:
                    worker.process.kill()
            await asyncio.wait(left, timeout=_LOOK_AGAIN)
        for keeper in self._keepers:
            keeper.cancel()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Have what is started meanwhile take no signals that are for its parent; here they are not lost."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TAKEN)


def _private_directory(workers: int) -> str:
    """A new directory that only we may enter, with room for sockets' names in its path.

    Raises StartupError.
    """
    try:
        home = tempfile.mkdtemp(prefix="pannier-")
        if len(os.fsencode(private(home, workers))) > LONGEST_SOCKET_PATH:
            os.rmdir(home)
            home = tempfile.mkdtemp(prefix="pannier-", dir="/tmp")
    except OSError as error:
        raise StartupError(
            f"workers need a directory for their private sockets, and none can be made ({error.strerror}); "
            "make /tmp or what TMPDIR names writable"
        ) from None
    return home


def _why(status: int) -> str:
    """Why a process has ended."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
