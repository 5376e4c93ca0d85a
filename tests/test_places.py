"""A worker's place, its share, and the connection to its parent."""

from __future__ import annotations

import asyncio
import json
import os
import socket

import pytest

from proxy.leash import Leash
from proxy.listening import Passed, open_for_all
from proxy.places import VARIABLE, Place, share
from proxy.resp.errors import StartupError
from proxy.settings import Settings
from proxy.tenants import Tenant
from proxy.upstream.address import Listen


def place(number: int = 2, of: int = 3) -> Place:
    return Place(number, of, "/private", 9, 10, (("127.0.0.1:7000", (4, 5)),), "aa")


class TestPlace:
    def test_comes_through_the_environment_once(self) -> None:
        environment = {VARIABLE: place().told(), "X": "y"}
        assert Place.taken(environment) == place()
        assert environment == {"X": "y"}, "it is not the children's"
        assert Place.taken(environment) is None

    def test_knows_its_siblings(self) -> None:
        assert place().private == "/private/worker-2.sock"
        assert place().siblings == {1: "/private/worker-1.sock", 3: "/private/worker-3.sock"}

    def test_has_sockets_by_address(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            number = os.dup(server.fileno())
            os.set_inheritable(number, True)
            found = Place(1, 2, "/p", 9, 10, (("127.0.0.1:7?tls=true", (number,)),), "").sockets()
        ((listen, (sock,)),) = found.items()
        with sock:
            assert listen == Listen("127.0.0.1", 7, tls=True)
            assert not sock.get_inheritable() and sock.getblocking() is False


class TestShare:
    def test_divides_what_there_is_once(self) -> None:
        tenant = Tenant("t", (), "t", max_memory=900, max_clients=4, max_ops_per_second=10)
        free = Tenant("f", (), "f")
        whole = Settings(max_memory=9 << 20, max_entries=10, max_clients=10, tenants=(tenant, free))
        part = share(whole, place())
        assert (part.max_memory, part.max_entries, part.max_clients) == (3 << 20, 3, 4)
        assert part.tenants[0].max_memory == 300
        assert (part.tenants[0].max_clients, part.tenants[0].max_ops_per_second) == (2, 4)
        assert part.tenants[1] == free
        assert part.listen == (Listen("127.0.0.1", 7000),)
        assert part.l1_ttl == whole.l1_ttl

    def test_leaves_one_of_everything(self) -> None:
        part = share(Settings(max_entries=1, max_clients=1), place())
        assert (part.max_entries, part.max_clients) == (1, 1)


class TestLeash:
    async def test_what_one_says_the_other_hears_until_it_is_gone(self) -> None:
        ours, theirs = socket.socketpair()
        heard: asyncio.Queue[object] = asyncio.Queue()
        one = Leash(ours, heard.put_nowait, lambda: heard.put_nowait("gone"))
        other = Leash(theirs, lambda order: None, lambda: None)
        other.say("early", n=1)  # before there is a connection to say it over
        tasks = [asyncio.create_task(each.run()) for each in (one, other)]
        assert await heard.get() == {"what": "early", "n": 1}
        other.say("late")
        assert await heard.get() == {"what": "late"}
        other.close()
        assert await heard.get() == "gone"
        await asyncio.gather(*tasks)
        one.say("into the void")
        one.close()

    async def test_half_a_line_is_the_end(self) -> None:
        ours, theirs = socket.socketpair()
        gone = asyncio.Event()
        leash = Leash(ours, lambda order: None, gone.set)
        task = asyncio.create_task(leash.run())
        theirs.sendall(json.dumps({"what": "x"}).encode()[:5])
        theirs.close()
        await gone.wait()
        await task
        leash.close()


class TestSocketsForAll:
    async def test_each_worker_has_one_of_its_own(self) -> None:
        found = await open_for_all(Listen("127.0.0.1", 0), 3)
        names = {sock.getsockname() for sockets in found for sock in sockets}
        assert len(names) == 1 and len({sock.fileno() for sockets in found for sock in sockets}) == 3
        ((host, port),) = names
        clients = [socket.create_connection((host, port), 5) for _ in range(60)]
        accepted = []
        for (sock,) in found:
            count = 0
            while True:
                try:
                    sock.accept()[0].close()
                except BlockingIOError:
                    break
                count += 1
            accepted.append(count)
        assert sum(accepted) == 60 and min(accepted) > 0
        for sock in [*clients, *(sock for sockets in found for sock in sockets)]:
            sock.close()

    async def test_an_address_that_is_served_is_in_use(self) -> None:
        """Though who serves it would share it, as these do."""
        (((sock,), *others)) = await open_for_all(Listen("127.0.0.1", 0), 2)
        with pytest.raises(StartupError, match="it is in use already"):
            await open_for_all(Listen("127.0.0.1", sock.getsockname()[1]), 2)
        for each in [sock, *(other for sockets in others for other in sockets)]:
            each.close()

    async def test_passed_ones_are_the_same_for_all(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            listen = Listen("127.0.0.1", server.getsockname()[1])
            passed = Passed([server])
            assert await open_for_all(listen, 2, passed) == [[server], [server]]
            assert passed.taken == {listen}
