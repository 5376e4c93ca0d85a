"""The least that any server on the proxy's event loop spends on these requests: it does nothing else.

A chunk is answered with as many copies of the one value as there are GETs in it; none is looked at, parsed or
looked up. What is above its figures is the proxy's doing, what is below them no asyncio server's.
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop

from bench.servers import HOST, PING
from bench.traffic import VALUE, bulk

GET = b"\nGET\r"
REPLY = bulk(VALUE)


class Echo(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.write(b"+PONG\r\n" if data == PING else REPLY * data.count(GET))


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Echo, HOST, port)
    await server.serve_forever()


def main() -> None:
    """Read the port and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
