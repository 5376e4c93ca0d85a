"""A client of the administration, and a Pannier that has one."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Process, free_port, pannier


class Found(NamedTuple):
    """An answer."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Figures(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """Samples of /metrics by name and labels."""

    def __call__(self, name: str, **labels: str) -> float:
        """One sample; `class_` stands for the label class. 0 if it is not there."""
        wanted = {name.rstrip("_"): value for name, value in labels.items()}
        return self.get((f"pannier_{name}", frozenset(wanted.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples with these labels, whatever others they have."""
        wanted = {(name.rstrip("_"), value) for name, value in labels.items()}
        return sum(value for (found, has), value in self.items() if found == f"pannier_{name}" and wanted <= has)


class Web:
    """Asks one administration."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self._tls = tls

    def ask(self, method: str, path: str, body: Any = None, **fields: str) -> Found:
        """One request on a connection of its own; a body that is no bytes goes as JSON."""
        fields = {name.replace("_", "-"): value for name, value in fields.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body)
            fields.setdefault("Content-Type", "application/json")
        connection: http.client.HTTPConnection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        if self._tls is not None:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self._tls)
        with contextlib.closing(connection):
            connection.request(method, path, body, fields)
            answer = connection.getresponse()
            return Found(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def get(self, path: str, **fields: str) -> Found:
        return self.ask("GET", path, **fields)

    def post(self, path: str, body: Any = None, **fields: str) -> Found:
        return self.ask("POST", path, body, **fields)

    def stats(self, path: str = "/stats") -> dict[str, Any]:
        found = self.get(path)
        assert found.status == 200, found
        return dict(found.json)

    def metrics(self) -> Figures:
        families = text_string_to_metric_families(self.get("/metrics").body.decode())
        return Figures(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in families
                for sample in family.samples
            }
        )

    def connect(self) -> socket.socket:
        """A plain socket to it."""
        return socket.create_connection(("127.0.0.1", self.port), 10)


@contextlib.contextmanager
def administered(
    upstream: str, directory: Path, *options: str, bus: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[Process, Web]]:
    """A pannier with an administration on this machine."""
    port = free_port()
    with pannier(upstream, directory, "--admin-listen", f"127.0.0.1:{port}", *options, bus=bus) as proxy:
        yield proxy, Web(port, tls)
