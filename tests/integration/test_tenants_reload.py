"""Tenants read again while Pannier runs: who stays is not disturbed, who is gone is out, nobody sees another's keys."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.harness import Process, pannier, redis_server, wait_until
from tests.integration.wire import Wire, text

OK = b"+OK\r\n"
WRONG = b"-WRONGPASS"
ACME = '[tenants.acme]\npassword = "a"\n'
BETA = '[tenants.beta]\npassword = "b"\n'


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


class House:
    """A Pannier with a file of tenants."""

    def __init__(self, proxy: Process, path: Path) -> None:
        self.proxy, self.path = proxy, path

    def write(self, text: str, says: str = "tenants in force") -> None:
        """Put another file in its place and wait until Pannier has said what it makes of it."""
        before = self.proxy.output.count(says)
        self.path.write_text(text)
        self.proxy.signal(signal.SIGHUP)
        wait_until(lambda: self.proxy.output.count(says) > before)

    def wire(self, *login: str, protocol: int = 2) -> Wire:
        wire = Wire(self.proxy.port, 2)
        if login:
            assert wire.ask("AUTH", *login) == OK
        if protocol == 3:
            wire.ask("HELLO", 3)
        return wire

    def refuses(self, *login: str) -> bool:
        with Wire(self.proxy.port) as wire:
            return wire.ask("AUTH", *login).startswith(WRONG)


@pytest.fixture
def house(upstream: Process, directory: Path) -> Iterator[House]:
    with Redis(port=upstream.port) as direct:
        direct.flushall()
    path = directory / "pannier.toml"
    path.write_text(ACME + BETA)
    options = ["--config", str(path), "--admit-after", "1"]
    with pannier(f"redis://127.0.0.1:{upstream.port}", directory, *options, bus=True) as proxy:
        yield House(proxy, path)
        assert "Traceback" not in proxy.output and "internal error" not in proxy.output, proxy.output


def gone(wire: Wire) -> bool:
    try:
        return wire.sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_one_that_is_gone_is_out_and_a_new_one_is_in(house: House, upstream: Process) -> None:
    with house.wire("acme", "a") as acme, house.wire("beta", "b") as beta, house.wire("beta", "b", protocol=3) as other:
        acme.line("SET k acme")
        beta.line("SET k beta")
        other.line("MULTI")
        house.write(ACME + '[tenants.gamma]\npassword = "g"\nnamespace = "team"\n')
        assert gone(beta) and gone(other)
        assert acme.line("GET k") == b"$4\r\nacme\r\n", "undisturbed"
        assert house.refuses("beta", "b")
        with house.wire("gamma", "g") as gamma, Redis(port=upstream.port) as direct:
            assert gamma.line("GET k") == b"$-1\r\n"
            gamma.line("SET k gamma")
            assert direct.get("team:k") == b"gamma"
            assert [gamma.line("GET k") for _ in range(3)] == [b"$5\r\ngamma\r\n"] * 3
            direct.set("team:k", "other")
            wait_until(lambda: gamma.line("GET k") == b"$5\r\nother\r\n")
            assert "tier_hits:" in text(gamma.line("INFO sidecar"))
    assert "3 tenants" not in house.proxy.output
    assert "2 tenants in force; new or another one now: gamma; gone: beta" in house.proxy.output


def test_another_password_holds_for_who_comes(house: House) -> None:
    with house.wire("acme", "a") as acme:
        house.write('[tenants.acme]\npassword = ["new", "newer"]\n' + BETA)
        assert house.refuses("acme", "a")
        house.wire("acme", "new").close()
        house.wire("acme", "newer").close()
        assert acme.line("SET k v") == OK


def test_limits_hold_for_who_is_here(house: House) -> None:
    with house.wire("acme", "a") as acme:
        for n in range(50):
            assert acme.line(f"SET k{n} v") == OK
        house.write('[tenants.acme]\npassword = "a"\nmax_ops_per_second = 5\nmax_clients = 1\n' + BETA)
        replies = [acme.line("GET k1") for _ in range(50)]
        assert any(b"is over its max_ops_per_second of 5" in reply for reply in replies)
        with Wire(house.proxy.port) as late:
            assert b"has its max_clients of 1" in late.ask("AUTH", "acme", "a")
        house.write(ACME + BETA)
        assert [acme.line("GET k1") for _ in range(50)] == [b"$1\r\nv\r\n"] * 50
        house.wire("acme", "a").close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_other_keys_are_another_tenant_of_that_name(house: House, upstream: Process, protocol: int) -> None:
    """What memory held under the old namespace is not shown under the new one."""
    with house.wire("acme", "a", protocol=protocol) as acme:
        acme.line("SET k old")
        for _ in range(5):
            assert acme.line("GET k") == b"$3\r\nold\r\n"
        house.write('[tenants.acme]\npassword = "a"\nnamespace = "moved"\nmax_memory = "1mb"\n' + BETA)
        assert gone(acme)
    with house.wire("acme", "a", protocol=protocol) as acme, Redis(port=upstream.port) as direct:
        assert acme.line("GET k") == (b"$-1\r\n" if protocol == 2 else b"_\r\n")
        acme.line("SET k new")
        assert direct.get("moved:k") == b"new" and direct.get("acme:k") == b"old"
        assert acme.line("GET k") == b"$3\r\nnew\r\n"
        house.write(ACME + BETA)
        assert gone(acme)
    with house.wire("acme", "a", protocol=protocol) as acme:
        assert acme.line("GET k") == b"$3\r\nold\r\n"


def test_memory_of_its_own_is_given_back(house: House) -> None:
    def most() -> int:
        with house.wire("beta", "b") as wire:
            return int(text(wire.line("INFO sidecar")).partition("tier_max_memory:")[2].split()[0])

    whole = most()
    for _ in range(3):
        house.write('[tenants.acme]\npassword = "a"\nmax_memory = "20mb"\n' + BETA)
        assert most() == whole - (20 << 20)
        house.write(ACME + BETA)
        assert most() == whole


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ACME + "[tenants.beta]\n", "but the old settings stay in force"),
        ("[tenants.acme", "but the old settings stay in force"),
        ("", "take effect at the next start only"),
    ],
    ids=["no password", "no TOML", "no tenants any more"],
)
def test_what_is_wrong_changes_nothing_and_opens_no_door(house: House, content: str, says: str) -> None:
    with house.wire("acme", "a") as acme:
        house.write(content, says)
        assert acme.line("SET k v") == OK
        with Wire(house.proxy.port) as stranger:
            assert stranger.line("GET k").startswith(b"-NOAUTH")
        house.wire("beta", "b").close()


def test_invalidations_of_a_new_one_reach_others(house: House, upstream: Process, directory: Path) -> None:
    path = directory / "other.toml"
    path.write_text(ACME)
    options = ["--config", str(path), "--admit-after", "1"]
    with pannier(f"redis://127.0.0.1:{upstream.port}", directory, *options, bus=True) as second:
        other = House(second, path)
        for each in (house, other):
            each.write(ACME + '[tenants.gamma]\npassword = "g"\n')
        with house.wire("gamma", "g") as one, other.wire("gamma", "g") as two:
            one.line("SET k v")
            told: Callable[[], bool] = lambda: b"cached\r\n$3\r\nyes" in two.line("SIDECAR EXPLAIN k")  # noqa: E731
            wait_until(lambda: two.line("GET k") and told())
            one.line("SIDECAR INVALIDATE k")
            wait_until(lambda: not told())
