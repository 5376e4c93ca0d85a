"""Connects and closes, so many times a second. A process of its own, so that it disturbs nobody's timing.

Every connection says PING and waits for the answer. Half of them close, half reset. They come from several
loopback addresses: from one, its ports would be used up for the minute that each closed connection takes one.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time

import uvloop

from bench.servers import HOST, PING

SOURCES = 8
MOST = 200
"""Connections under way at once."""
RESET = struct.pack("ii", 1, 0)


async def storm(port: int, rate: float, seconds: float) -> dict[str, float]:
    """Go on for some seconds; what came of it."""
    loop = asyncio.get_running_loop()
    free = asyncio.Semaphore(MOST)
    done = errors = 0

    async def one(number: int) -> None:
        nonlocal done, errors
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            sock.bind((f"127.0.0.{2 + number % SOURCES}", 0))
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            async with asyncio.timeout(10.0):
                await loop.sock_connect(sock, (HOST, port))
                await loop.sock_sendall(sock, PING)
                answer = await loop.sock_recv(sock, 16)
            done += 1
            errors += answer != b"+PONG\r\n"
        except (OSError, TimeoutError):
            errors += 1
        finally:
            sock.close()
            free.release()

    began = time.perf_counter()
    started = 0
    tasks: set[asyncio.Task[None]] = set()
    while (now := time.perf_counter() - began) < seconds:
        due = int(now * rate) - started
        for _ in range(due):
            await free.acquire()
            task = loop.create_task(one(started))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            started += 1
        await asyncio.sleep(0.001)
    if tasks:
        await asyncio.wait(tasks)
    spent = time.process_time()
    return {"done": done, "errors": errors, "seconds": time.perf_counter() - began, "cpu": spent}


def main() -> None:
    port, rate, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(storm(int(port), float(rate), float(seconds)))))


if __name__ == "__main__":
    main()
