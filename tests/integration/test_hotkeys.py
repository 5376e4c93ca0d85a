"""SIDECAR HOTKEYS, BIGKEYS and CHURN before a real Redis: over both protocols, in two namespaces and none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, ResponseError

from tests.harness import Process, free_port, pannier, redis_server, wait_until

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])
HITS = 2000


@dataclass
class House:
    """A Pannier with a listener for no namespace and one for each of two."""

    redis: Process
    ports: dict[str, int]

    def client(self, name: str = "", protocol: int = 2) -> Redis:
        return Redis(port=self.ports[name], protocol=protocol, decode_responses=True)

    def ask(self, name: str, *arguments: str, protocol: int = 2) -> list[dict[str, Any]]:
        """SIDECAR as this namespace's client."""
        with self.client(name, protocol) as client:
            found = client.execute_command("SIDECAR", *arguments)
            return [each if isinstance(each, dict) else dict(zip(each[::2], each[1::2], strict=True)) for each in found]


def read(client: Redis, times: dict[str, int]) -> None:
    """Read keys so many times, mixed, in pipelines of 20."""
    keys = [key for key, n in times.items() for _ in range(n)]
    random.Random(1).shuffle(keys)
    for begin in range(0, len(keys), 20):
        pipeline = client.pipeline(transaction=False)
        for key in keys[begin : begin + 20]:
            pipeline.get(key)
        pipeline.execute()


def churn(client: Redis, key: str, times: int) -> None:
    for n in range(times):
        client.set(key, n)
        assert client.get(key) == str(n)


@pytest.fixture(scope="module")
def house(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """What each client has read: user:1 most, in one twice as much as elsewhere; api:list is large."""
    directory = tmp_path_factory.mktemp("hot")
    ports = {"": free_port(), "one": free_port(), "two": free_port()}
    listeners = [word for name in ("one", "two") for word in ("--listen", f"127.0.0.1:{ports[name]}?namespace={name}")]
    with redis_server(any_redis_binary, directory) as redis, pannier(f"redis://127.0.0.1:{redis.port}", directory, *listeners, port=ports[""]):
        house = House(redis, ports)
        for name, times in (("one", 2 * HITS), ("two", HITS), ("", HITS)):
            with house.client(name) as client:
                client.mset({"user:1": "Ada", "user:2": "Bob", "api:list": "x" * 50_000})
                for _ in range(3):
                    client.mget("user:1", "user:2", "api:list")
                read(client, {"user:1": times, "user:2": times // 4, "api:list": times // 20})
                churn(client, "counter:visits", 30)
        yield house


@both_protocols
@pytest.mark.parametrize("name", ["one", "two"])
class TestInANamespace:
    """Its own keys, by the names it knows; no word of a prefix, or of anybody else's."""

    def test_hotkeys(self, house: House, name: str, protocol: int) -> None:
        found = house.ask(name, "HOTKEYS", protocol=protocol)
        assert [each["key"] for each in found[:2]] == ["user:1", "user:2"]
        assert {each["key"] for each in found} <= {"user:1", "user:2", "api:list", "counter:visits"}
        assert all(each["hits"] <= each["reads"] for each in found)
        reads = 2 * HITS if name == "one" else HITS
        assert found[0]["reads"] == pytest.approx(reads, rel=0.2) and float(found[0]["reads_per_second"]) > 0
        assert (found[0]["command"], found[0]["class"]) == ("GET", "user")

    def test_by_bytes(self, house: House, name: str, protocol: int) -> None:
        first = house.ask(name, "HOTKEYS", "1", "BYTES", protocol=protocol)
        assert [each["key"] for each in first] == ["api:list"] and first[0]["size"] >= 50_000

    def test_bigkeys(self, house: House, name: str, protocol: int) -> None:
        found = house.ask(name, "BIGKEYS", "2", protocol=protocol)
        assert found[0]["key"] == "api:list" and len(found) == 2 and found[0]["size"] > found[1]["size"]

    def test_churn(self, house: House, name: str, protocol: int) -> None:
        found = house.ask(name, "CHURN", protocol=protocol)
        assert [each["key"] for each in found] == ["counter:visits"]
        assert found[0]["changes"] >= 20

    def test_no_word_of_others(self, house: House, name: str, protocol: int) -> None:
        told = [house.ask(name, *words, protocol=protocol) for words in (("HOTKEYS", "99"), ("BIGKEYS", "99"), ("CHURN", "99"))]
        assert "one" not in str(told) and "two" not in str(told) and "namespace" not in str(told)


class TestWithoutANamespace:
    def test_all_are_seen_by_their_names_in_redis(self, house: House) -> None:
        found = house.ask("", "HOTKEYS", "99")
        assert {each["key"] for each in found} >= {"one:user:1", "two:user:1", "user:1"}
        assert {each["key"]: each.get("namespace") for each in found}["one:user:1"] == "one"
        assert found[0]["key"] == "one:user:1"

    def test_another_user_of_redis_sees_what_he_has_read(self, house: House) -> None:
        with Redis(port=house.redis.port) as admin, house.client() as client:
            admin.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~other", "+@all")
            client.execute_command("AUTH", "reader", "pw")
            client.set("other", "v")
            read(client, {"other": HITS})
            found = client.execute_command("SIDECAR", "HOTKEYS", "99")
            assert [dict(zip(each[::2], each[1::2], strict=True))["key"] for each in found] == ["other"]
            assert client.execute_command("SIDECAR", "CHURN") == []


class TestBadInput:
    @pytest.mark.parametrize("given", ["0", "1001", "-1", "x", "1.5", "9" * 40, ""])
    @pytest.mark.parametrize("command", ["HOTKEYS", "BIGKEYS", "CHURN"])
    def test_numbers(self, house: House, command: str, given: str) -> None:
        with house.client() as client, pytest.raises(ResponseError, match=rf"SIDECAR {command} takes .*1000"):
            client.execute_command("SIDECAR", command, given)

    @pytest.mark.parametrize("given", [("READS", "5"), ("5", "SIZE"), ("BYTES", "BYTES"), ("5", "5")])
    def test_words(self, house: House, given: tuple[str, str]) -> None:
        with house.client() as client, pytest.raises(ResponseError, match="SIDECAR HOTKEYS takes"):
            client.execute_command("SIDECAR", "HOTKEYS", *given)

    def test_too_many(self, house: House) -> None:
        with house.client() as client, pytest.raises(ResponseError, match="wrong number of arguments"):
            client.execute_command("SIDECAR", "BIGKEYS", "1", "2")


@pytest.mark.parametrize("how", ["hashed", "off"])
def test_key_privacy(house: House, directory: Path, how: str) -> None:
    with pannier(f"redis://127.0.0.1:{house.redis.port}", directory, "--key-privacy", how) as proxy:
        one = House(house.redis, {"": proxy.port})
        with one.client() as client:
            client.set("alice@example.com", "v")
            wait_until(lambda: client.get("alice@example.com") and client.info("sidecar")["pannier_tier_entries"])
            read(client, {"alice@example.com": HITS})
            churn(client, "bob@example.com", 10)
        told = [one.ask("", command) for command in ("HOTKEYS", "BIGKEYS", "CHURN")]
        assert all(told) and "example" not in str(told) and "alice" not in str(told)
        keys = {each.get("key") for each in (told[0][0], told[1][0])}
        assert keys == {None} if how == "off" else len(keys) == 1 and None not in keys


def test_without_a_tier_there_is_nothing(house: House, directory: Path) -> None:
    with pannier(f"redis://127.0.0.1:{house.redis.port}", directory, "--tracking", "off") as proxy:
        one = House(house.redis, {"": proxy.port})
        assert [one.ask("", command) for command in ("HOTKEYS", "BIGKEYS", "CHURN")] == [[], [], []]
