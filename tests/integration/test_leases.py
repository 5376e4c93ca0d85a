"""SIDECAR LEASE on real servers: however many clients at however many Panniers miss a key, one computes it."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, ResponseError

from tests.harness import ROOT, Process, free_port, pannier, redis_server, wait_until
from tests.integration.wire import Wire, request

EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "leases.md").read_text("utf-8"), re.DOTALL)
assert EXAMPLE is not None
DOCUMENTED: dict[str, Any] = {}
exec(EXAMPLE.group(1), DOCUMENTED)
get_or_compute: Callable[..., bytes | None] = DOCUMENTED["get_or_compute"]
"""As docs/leases.md shows it."""
CROWD = 200
LONG = 60_000
"""Milliseconds that no test takes."""


@pytest.fixture(scope="module")
def spaced() -> list[int]:
    """Ports on which four Panniers serve the namespace acme."""
    return [free_port() for _ in range(4)]


@contextmanager
def panniers(redis: Process, directory: Path, count: int, *options: str, spaced: list[int] | None = None) -> Iterator[list[Process]]:
    """Some Panniers in front of one Redis."""
    with ExitStack() as stack:
        found = []
        for number in range(count):
            listen = ["--listen", f"127.0.0.1:{spaced[number]}?namespace=acme"] if spaced else []
            url = f"redis://127.0.0.1:{redis.port}"
            found.append(stack.enter_context(pannier(url, directory, *options, *listen)))
        yield found


@pytest.fixture(scope="module")
def shared_four(shared_redis: Process, tmp_path_factory: pytest.TempPathFactory, spaced: list[int]) -> Iterator[list[Process]]:
    with panniers(shared_redis, tmp_path_factory.mktemp("four"), 4, spaced=spaced) as found:
        yield found


@pytest.fixture
def four(redis: Process, shared_four: list[Process]) -> list[Process]:
    return shared_four


@pytest.fixture(scope="module")
def shared_blind(shared_redis: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    with panniers(shared_redis, tmp_path_factory.mktemp("blind"), 4, "--tracking", "off") as found:
        yield found


@pytest.fixture
def blind(redis: Process, shared_blind: list[Process]) -> list[Process]:
    """Four to whom nobody tells of changes."""
    return shared_blind


def lease(client: Redis, *options: object, key: str = "k") -> list[Any]:
    return client.execute_command("SIDECAR", "LEASE", key, *(options or (LONG,)))


class Crowd:
    """Clients that ask `get_or_compute` at the same time, and how often was computed for them."""

    def __init__(self, ports: list[int], size: int, protocol: int = 2) -> None:
        self.clients = [Redis(port=ports[i % len(ports)], protocol=protocol, socket_timeout=60) for i in range(size)]
        self.computed: list[str] = []
        self._pool = ThreadPoolExecutor(size)
        self.answers: list[Any] = []
        self._start = threading.Barrier(size + 1)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        for client in self.clients:
            client.close()

    def begin(self, compute: Callable[[], bytes | None], patience_ms: int = LONG) -> None:
        def work(client: Redis) -> bytes | None:
            client.ping()
            self._start.wait(60)
            return get_or_compute(client, "k", 60, counted, patience_ms)

        def counted() -> bytes | None:
            self.computed.append(threading.current_thread().name)
            return compute()

        self.answers = [self._pool.submit(work, client) for client in self.clients]
        self._start.wait(60)

    def end(self) -> list[bytes | None]:
        return [answer.result(60) for answer in self.answers]


def slowly() -> bytes:
    """As long as it takes that all others have missed."""
    time.sleep(0.3)
    return b"v"


def no_lease_left(redis: Process) -> None:
    """A lease is deleted as soon as its key is set."""
    direct = Redis(port=redis.port)
    wait_until(lambda: not list(direct.scan_iter("*pannier:lease:*")), 5)


class TestTwoHundredClientsOnFourPanniers:
    @pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])
    def test_compute_once(self, redis: Process, four: list[Process], protocol: int) -> None:
        with Crowd([each.port for each in four], CROWD, protocol) as crowd:
            crowd.begin(slowly)
            assert crowd.end() == [b"v"] * CROWD
            assert len(crowd.computed) == 1
        no_lease_left(redis)

    def test_compute_once_in_a_namespace(self, redis: Process, four: list[Process], spaced: list[int]) -> None:
        with Crowd(spaced, CROWD) as crowd:
            crowd.begin(slowly)
            assert crowd.end() == [b"v"] * CROWD
            assert len(crowd.computed) == 1
        no_lease_left(redis)
        assert Redis(port=redis.port).keys() == [b"acme:k"]

    @pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])
    def test_compute_once_where_nothing_is_tracked(self, redis: Process, blind: list[Process], protocol: int) -> None:
        with Crowd([each.port for each in blind], CROWD, protocol) as crowd:
            crowd.begin(slowly)
            assert crowd.end() == [b"v"] * CROWD
            assert len(crowd.computed) == 1
        no_lease_left(redis)

    def test_compute_once_each_time_the_value_is_gone(self, redis: Process, four: list[Process]) -> None:
        direct = Redis(port=redis.port)
        for _ in range(3):
            with Crowd([each.port for each in four], 40) as crowd:
                crowd.begin(slowly)
                assert crowd.end() == [b"v"] * 40
                assert len(crowd.computed) == 1
            direct.delete("k")

    def test_that_there_is_nothing_is_kept_as_well(self, redis: Process, four: list[Process]) -> None:
        with Crowd([each.port for each in four], 40) as crowd:
            crowd.begin(lambda: None)
            assert crowd.end() == [None] * 40
            assert len(crowd.computed) == 1
        assert Redis(port=redis.port).get("k") == DOCUMENTED["NOTHING"]

    def test_of_one_that_fails_the_next_takes_over(self, redis: Process, four: list[Process]) -> None:
        failing = iter([True, True, False])

        def compute() -> bytes:
            time.sleep(0.05)
            if next(failing):
                raise ZeroDivisionError
            return b"v"

        with Crowd([each.port for each in four], 40) as crowd:
            crowd.begin(compute)
            outcomes = [answer.exception(60) or answer.result() for answer in crowd.answers]
            assert len(crowd.computed) == 3
            assert outcomes.count(b"v") == 38
            assert sum(isinstance(outcome, ZeroDivisionError) for outcome in outcomes) == 2
        no_lease_left(redis)


class Fuss:
    """Clients that get, compute, drop, fail and break off, and who computes what at the moment."""

    KEYS = ("a", "b", "c")

    def __init__(self, ports: list[int], rounds: int) -> None:
        self._ports = ports
        self._rounds = rounds
        self._lock = threading.Lock()
        self._computing: dict[str, bytes] = {}
        self.versions = dict.fromkeys(self.KEYS, 0)
        """How often each key was computed."""
        self.twice: list[str] = []

    def work(self, seed: int) -> None:
        dice = random.Random(seed)
        client = self._client(dice)
        for _ in range(self._rounds):
            key = dice.choice(self.KEYS)
            word, value = lease(client, LONG, key=key)
            assert word in (b"HIT", b"LEASE"), word
            if word == b"HIT":
                assert int(value) <= self.versions[key]
                if dice.random() < 0.3:
                    client.delete(key)
                continue
            with self._lock:
                if key in self._computing:
                    self.twice.append(key)
                self._computing[key] = value
                self.versions[key] += 1
                version = self.versions[key]
            time.sleep(dice.random() * 0.003)
            with self._lock:
                del self._computing[key]
            outcome = dice.random()
            if outcome < 0.15:
                client.close()
                client = self._client(dice)
            elif outcome < 0.3:
                assert client.execute_command("SIDECAR", "UNLEASE", key, value) == 1
            else:
                client.set(key, version)
        client.close()

    def _client(self, dice: random.Random) -> Redis:
        return Redis(port=dice.choice(self._ports), protocol=dice.choice((2, 3)), socket_timeout=60)


class TestInTheThickOfIt:
    def test_no_two_compute_the_same_at_the_same_time(self, redis: Process, four: list[Process]) -> None:
        """Among keys that are dropped all the time, failures and connections that break off."""
        fuss = Fuss([each.port for each in four], rounds=60)
        with ThreadPoolExecutor(24) as threads:
            for done in [threads.submit(fuss.work, seed) for seed in range(24)]:
                done.result(120)
        assert not fuss.twice
        assert min(fuss.versions.values()) > 10
        wait_until(lambda: not any(sum(self.figures(each.port)) for each in four), 5)
        no_lease_left(redis)

    @staticmethod
    def figures(port: int) -> list[int]:
        info = Redis(port=port).info("sidecar")
        return [info["pannier_leases_held"], info["pannier_leases_waiting"]]


class TestWhenTheHolderFails:
    def test_one_more_computes_after_its_time(self, redis: Process, four: list[Process]) -> None:
        """It hangs: its connection stays."""
        holder = Redis(port=four[0].port)
        assert lease(holder, 700)[0] == b"LEASE"
        with Crowd([each.port for each in four], 80) as crowd:
            crowd.begin(slowly)
            assert crowd.end() == [b"v"] * 80
            assert len(crowd.computed) == 1
        holder.close()

    def test_one_more_computes_at_once_if_it_crashes(self, redis: Process, four: list[Process]) -> None:
        holder = Redis(port=four[0].port)
        assert lease(holder)[0] == b"LEASE"
        with Crowd([each.port for each in four], 80) as crowd:
            crowd.begin(slowly)
            holder.close()
            assert crowd.end() == [b"v"] * 80
            assert len(crowd.computed) == 1

    def test_one_more_computes_if_its_pannier_is_killed(self, redis: Process, directory: Path, four: list[Process]) -> None:
        with pannier(f"redis://127.0.0.1:{redis.port}", directory) as victim:
            holder = Redis(port=victim.port)
            assert lease(holder, 700)[0] == b"LEASE"
            with Crowd([each.port for each in four], 80) as crowd:
                crowd.begin(slowly)
                victim.kill()
                assert crowd.end() == [b"v"] * 80
                assert len(crowd.computed) == 1
            holder.close()

    def test_one_more_computes_at_once_if_its_pannier_is_stopped(
        self, redis: Process, directory: Path, four: list[Process]
    ) -> None:
        with (
            pannier(f"redis://127.0.0.1:{redis.port}", directory) as stopping,
            Wire(stopping.port) as holder,
            Wire(stopping.port) as waiter,
            Wire(four[0].port) as elsewhere,
        ):
            holder.ask("SIDECAR", "LEASE", "k", LONG)
            waiter.send("SIDECAR", "LEASE", "k", LONG)
            elsewhere.send("SIDECAR", "LEASE", "k", LONG)
            wait_until(lambda: Redis(port=stopping.port).info("sidecar")["pannier_leases_waiting"] == 1)
            assert stopping.stop() == 0
            # The holder may be seen off before the one who waits: then that one holds it, until it is seen off too.
            assert (said := waiter.read()) == b"*2\r\n$4\r\nWAIT\r\n$-1\r\n" or b"LEASE" in said
            assert b"LEASE" in elsewhere.read()

    def test_nobody_computes_if_the_value_is_set_in_redis(self, redis: Process, four: list[Process]) -> None:
        holder = Redis(port=four[0].port)
        assert lease(holder)[0] == b"LEASE"
        with Crowd([each.port for each in four], 80) as crowd:
            crowd.begin(slowly)
            Redis(port=redis.port).set("k", "from elsewhere")
            assert crowd.end() == [b"from elsewhere"] * 80
            assert not crowd.computed
        no_lease_left(redis)
        holder.close()

    def test_nor_where_nothing_is_tracked(self, redis: Process, blind: list[Process]) -> None:
        holder = Redis(port=blind[0].port)
        assert lease(holder)[0] == b"LEASE"
        with Crowd([each.port for each in blind], 40) as crowd:
            crowd.begin(slowly)
            Redis(port=redis.port).set("k", "from elsewhere")
            assert crowd.end() == [b"from elsewhere"] * 40
            assert not crowd.computed
        no_lease_left(redis)
        holder.close()


class TestOneConnection:
    def test_replies_in_both_protocols(self, redis: Process, four: list[Process]) -> None:
        for protocol, nil in ((2, b"$-1\r\n"), (3, b"_\r\n")):
            with Wire(four[0].port, protocol) as wire, Wire(four[1].port, protocol) as other:
                reply = wire.ask("SIDECAR", "LEASE", "k", LONG)
                assert re.fullmatch(rb"\*2\r\n\$5\r\nLEASE\r\n\$32\r\n[0-9a-f]{32}\r\n", reply)
                assert other.ask("SIDECAR", "LEASE", "k", LONG, "WAIT", 0) == b"*2\r\n$4\r\nWAIT\r\n" + nil
                wire.ask("SET", "k", "v")
                assert other.ask("SIDECAR", "LEASE", "k", LONG) == b"*2\r\n$3\r\nHIT\r\n$1\r\nv\r\n"
                wire.ask("DEL", "k")
            no_lease_left(redis)

    def test_what_is_sent_behind_waits(self, redis: Process, four: list[Process]) -> None:
        with Wire(four[0].port) as holder, Wire(four[1].port) as wire:
            holder.ask("SIDECAR", "LEASE", "k", LONG)
            wire.raw(request("SET", "a", 1) + request("SIDECAR", "LEASE", "k", LONG) + request("GET", "a"))
            assert wire.read() == b"+OK\r\n"
            holder.ask("SET", "a", 2)
            holder.ask("SET", "k", "v")
            assert wire.reads(2) == [b"*2\r\n$3\r\nHIT\r\n$1\r\nv\r\n", b"$1\r\n2\r\n"]

    def test_in_a_transaction_and_for_subscribers_it_is_refused(self, redis: Process, four: list[Process], spaced: list[int]) -> None:
        for port in (four[0].port, spaced[0]):
            with Wire(port) as wire:
                wire.ask("MULTI")
                assert wire.ask("SIDECAR", "LEASE", "k", LONG).startswith(b"-ERR")
                assert wire.ask("EXEC").startswith(b"-EXECABORT")
                wire.ask("WATCH", "k")
                assert wire.ask("SIDECAR", "LEASE", "k", LONG).startswith(b"-ERR")
                wire.ask("UNWATCH")
                wire.ask("SUBSCRIBE", "channel")
                assert wire.ask("SIDECAR", "LEASE", "k", LONG).startswith(b"-ERR")
        assert not Redis(port=redis.port).keys()

    def test_info_counts_them(self, redis: Process, four: list[Process], spaced: list[int]) -> None:
        def figures(port: int) -> list[int]:
            info = Redis(port=port).info("sidecar")
            return [info[f"pannier_leases_{name}"] for name in ("granted", "held", "waiting")]

        before = figures(four[0].port)[0]
        own = figures(spaced[0])[0]
        with Wire(four[0].port) as holder, Wire(four[0].port) as waiter, Wire(spaced[0]) as guest:
            holder.ask("SIDECAR", "LEASE", "k", LONG)
            waiter.send("SIDECAR", "LEASE", "k", LONG)
            guest.ask("SIDECAR", "LEASE", "k", LONG)
            wait_until(lambda: figures(four[0].port) == [before + 2, 2, 1])
            assert figures(spaced[0]) == [own + 1, 1, 0], "nothing about others"
            holder.ask("SET", "k", "v")
            assert waiter.read() == b"*2\r\n$3\r\nHIT\r\n$1\r\nv\r\n"
        wait_until(lambda: figures(four[0].port) == [before + 2, 0, 0])

    def test_a_wrong_type(self, redis: Process, four: list[Process]) -> None:
        client = Redis(port=four[0].port)
        client.rpush("k", "x")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            lease(client)

    def test_neither_who_waits_nor_who_computes_is_idle(self, redis: Process, directory: Path) -> None:
        with (
            pannier(f"redis://127.0.0.1:{redis.port}", directory, "--client-timeout", "1") as proxy,
            Wire(proxy.port) as holder,
            Wire(proxy.port) as waiter,
        ):
            holder.ask("SIDECAR", "LEASE", "k", LONG)
            waiter.send("SIDECAR", "LEASE", "k", LONG)
            for _ in range(2):
                with Wire(proxy.port) as idle:
                    assert idle.rest() == b"", "closed after a second or two"
            assert holder.ask("SET", "k", "v") == b"+OK\r\n"
            assert waiter.read() == b"*2\r\n$3\r\nHIT\r\n$1\r\nv\r\n"

    def test_redis_going_away_releases_all_at_once(self, any_redis_binary: str, directory: Path) -> None:
        with (
            redis_server(any_redis_binary, directory) as redis,
            pannier(f"redis://127.0.0.1:{redis.port}", directory) as proxy,
            Wire(proxy.port) as holder,
            Wire(proxy.port) as waiter,
        ):
            holder.ask("SIDECAR", "LEASE", "k", LONG)
            waiter.send("SIDECAR", "LEASE", "k", LONG)
            redis.kill()
            assert waiter.read().startswith(b"-ERR pannier: upstream")
            assert holder.ask("SIDECAR", "LEASE", "k", LONG).startswith(b"-ERR pannier: upstream")


class TestRedisRefuses:
    def test_a_replica(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory) as redis, panniers(redis, directory, 1) as (proxy,):
            client = Redis(port=proxy.port)
            client.set("k", "v")
            Redis(port=redis.port).execute_command("REPLICAOF", "127.0.0.1", free_port())
            assert lease(client) == [b"HIT", b"v"]
            with pytest.raises(ResponseError, match="read only replica"):
                lease(client, key="nosuch")

    def test_a_full_one(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory) as redis, panniers(redis, directory, 1) as (proxy,):
            client = Redis(port=proxy.port)
            client.config_set("maxmemory", "1")
            with pytest.raises(ResponseError, match="maxmemory"):
                lease(client)

    def test_a_user_who_may_not_touch_leases(self, redis: Process, four: list[Process]) -> None:
        direct = Redis(port=redis.port)
        direct.acl_setuser("app", enabled=True, passwords=["+secret"], keys=["app:*"], categories=["+@all"])
        try:
            client = Redis(port=four[0].port, username="app", password="secret")
            with pytest.raises(ResponseError, match="permissions"):
                lease(client, key="app:1")
            client.set("app:1", "v")
            assert lease(client, key="app:1") == [b"HIT", b"v"]
            client.close()
        finally:
            direct.acl_deluser("app")

    def test_a_user_who_may_not_run_scripts_gives_back_all_the_same(self, redis: Process, four: list[Process]) -> None:
        direct = Redis(port=redis.port)
        direct.acl_setuser("app", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all", "-@scripting", "-@dangerous"])
        try:
            one, other = (Redis(port=each.port, username="app", password="secret") for each in four[:2])
            word, token = lease(one)
            assert word == b"LEASE"
            assert other.execute_command("SIDECAR", "UNLEASE", "k", token) == 1
            assert other.execute_command("SIDECAR", "UNLEASE", "k", token) == 0
            assert lease(other)[0] == b"LEASE"
            other.set("k", "v")
            no_lease_left(redis)
            one.close()
            other.close()
        finally:
            direct.acl_deluser("app")

    def test_without_the_right_to_transactions_it_lapses(self, redis: Process, four: list[Process]) -> None:
        direct = Redis(port=redis.port)
        direct.acl_setuser("app", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all", "-@transaction"])
        try:
            client = Redis(port=four[0].port, username="app", password="secret")
            _, token = lease(client, 400)
            with pytest.raises(ResponseError, match="permissions"):
                client.execute_command("SIDECAR", "UNLEASE", "k", token)
            assert lease(client, LONG)[0] == b"LEASE"
            client.set("k", "v")
            assert lease(client, LONG) == [b"HIT", b"v"]
            client.close()
        finally:
            direct.acl_deluser("app")


def test_other_modes_of_tracking(redis: Process, directory: Path) -> None:
    for options in (["--tracking", "bcast"], ["--tracking", "off", "--broadcast", "writes"]):
        with panniers(redis, directory, 2, *options) as two:
            with Crowd([each.port for each in two], 40) as crowd:
                crowd.begin(slowly)
                assert crowd.end() == [b"v"] * 40
                assert len(crowd.computed) == 1
            no_lease_left(redis)
        Redis(port=redis.port).delete("k")


def test_who_waits_may_have_the_last_value_instead(shared_redis: Process, directory: Path) -> None:
    """`STALE`: of two that miss what has expired, one computes, the other takes what was there last."""
    rules = directory / "rules.toml"
    rules.write_text('[[rules]]\nmatch = "r:*"\nstale_while_revalidate = "60s"\n')
    options = ["--admit-after", "1", "--rules-file", str(rules)]
    with (
        panniers(shared_redis, directory, 1, *options) as (proxy,),
        Wire(proxy.port) as one,
        Wire(proxy.port) as other,
    ):
        assert one.ask("SET", "r:1", "old", "PX", "1500") == b"+OK\r\n"
        for _ in range(4):
            assert one.ask("GET", "r:1") == b"$3\r\nold\r\n"
        wait_until(lambda: one.ask("GET", "r:1") == b"$-1\r\n")
        assert one.ask("SIDECAR", "LEASE", "r:1", LONG).startswith(b"*2\r\n$5\r\nLEASE\r\n")
        assert other.ask("SIDECAR", "LEASE", "r:1", LONG, "STALE") == b"*2\r\n$5\r\nSTALE\r\n$3\r\nold\r\n"
        assert one.ask("SET", "r:1", "new") == b"+OK\r\n"
        assert other.ask("SIDECAR", "LEASE", "r:1", LONG, "STALE") == b"*2\r\n$3\r\nHIT\r\n$3\r\nnew\r\n"
