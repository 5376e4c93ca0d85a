"""Scrapes /metrics once a second, as Prometheus would, while a proxy is measured."""

from __future__ import annotations

import threading
from contextlib import suppress
from urllib.request import urlopen

EVERY = 1.0


class Scraper:
    """A thread that scrapes until it is stopped. `scrapes`: how many were answered."""

    def __init__(self, url: str) -> None:
        self.scrapes = 0
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            with suppress(OSError), urlopen(self._url, timeout=5) as answer:
                self.scrapes += bool(answer.read())
