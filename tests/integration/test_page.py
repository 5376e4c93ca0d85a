"""The page at / as a browser shows it: headless Chromium, real figures."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.harness import ROOT, Process, redis_server
from tests.integration.web import Web, administered
from tests.integration.wire import Wire, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
SOURCE = ROOT / "proxy/observe/dashboard/index.html"
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


class Browser:
    """A browser that looks at the page for some virtual seconds: a few looks at /stats, without waiting."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, url: str, *options: str) -> str:
        profile = self._directory / "profile"
        command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", "--virtual-time-budget=9000", *options, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def text_of(self, url: str) -> dict[str, str]:
        """The text of every element that has an id and is not hidden."""
        reader = Reader()
        reader.feed(self.run(url, "--dump-dom"))
        return {name: " ".join("".join(pieces).split()) for name, pieces in reader.found.items()}


class Reader(HTMLParser):
    """Collects the text of elements by id, but of those that are hidden."""

    EMPTY = frozenset({"meta", "link", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self._open: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("id") or ""
        if name and "hidden" not in given:
            self.found[name] = []
        if tag not in self.EMPTY:
            self._open.append((tag, name))

    def handle_endtag(self, tag: str) -> None:
        if any(opened == tag for opened, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            if name in self.found:
                self.found[name].append(data)


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path)


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
def house(upstream: Process, tmp_path: Path) -> Iterator[tuple[Process, Web]]:
    with administered(f"redis://127.0.0.1:{upstream.port}", tmp_path) as found:
        yield found


def busy(proxy: Process, key: str = "user:1") -> None:
    with Wire(proxy.port) as wire:
        wire.ask("SET", key, "x" * 100)
        for _ in range(20):
            wire.ask("GET", key)


def test_it_needs_nothing_from_elsewhere() -> None:
    """No style, script, font or picture: it works where nothing but Pannier can be reached."""
    source = SOURCE.read_text()
    assert set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"')]*", source)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|script|img|iframe)[^>]*(?:src|href)=\"(?!data:)", source)
    assert source.count('lang="en"') == 1 and 'name="viewport"' in source


def test_what_is_sent_with_it_keeps_it_so(house: tuple[Process, Web]) -> None:
    _, web = house
    answer = web.get("/")
    assert answer.status == 200 and answer.body == SOURCE.read_bytes()
    assert answer.fields["content-type"] == "text/html; charset=utf-8"
    assert answer.fields["content-security-policy"].startswith("default-src 'none'; ")
    assert "connect-src 'self'" in answer.fields["content-security-policy"]
    assert web.get("/?x=1").status == 400


@in_a_browser
class TestInABrowser:
    def test_shows_what_there_is(self, house: tuple[Process, Web], browser: Browser) -> None:
        proxy, web = house
        busy(proxy)
        seen = browser.text_of(f"http://127.0.0.1:{web.port}/")
        assert seen["state"] == "✓ ready" and seen["redis"] == "✓ up"
        assert re.fullmatch(r"9\d(\.\d)? % of 20 reads since the start", seen["rate-all"])
        assert re.fullmatch(r"of 64 MB; 1 entries", seen["memory-more"])
        assert seen["where"].startswith("in front of redis://127.0.0.1:")
        assert "user" in seen["classes"] and "trouble" not in seen and "ask" not in seen
        assert not re.search(r"undefined|NaN|null|\[object", " ".join(seen.values()))

    def test_says_what_is_wrong(self, any_redis_binary: str, tmp_path: Path, browser: Browser) -> None:
        with (
            redis_server(any_redis_binary, tmp_path) as redis,
            administered(f"redis://127.0.0.1:{redis.port}", tmp_path) as (_, web),
        ):
            redis.kill()
            until(lambda: web.get("/readyz").status == 503, "Redis' end is seen")
            seen = browser.text_of(f"http://127.0.0.1:{web.port}/")
        assert seen["state"].startswith("✗ not ready: ") and seen["redis"].startswith("✗ ")

    def test_asks_for_the_token_where_one_is_wanted(self, upstream: Process, tmp_path: Path, browser: Browser) -> None:
        options = ("--admin-token", "a-secret-token", "--admin-protect", "all")
        with administered(f"redis://127.0.0.1:{upstream.port}", tmp_path, *options) as (_, web):
            seen = browser.text_of(f"http://127.0.0.1:{web.port}/")
        assert "ask" in seen and seen["state"] == "…"

    def test_a_name_is_shown_as_text(self, house: tuple[Process, Web], browser: Browser) -> None:
        """A key may be called anything; the page runs none of it."""
        proxy, web = house
        busy(proxy, "<b id=evil>x</b><script>document.title='evil'</script>:1")
        page = browser.run(f"http://127.0.0.1:{web.port}/", "--dump-dom")
        assert "<b id=" not in page and "evil'</script>" not in page.partition("<script>")[0]

    @pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)], ids=["wide-light", "phone-dark"])
    def test_draws_itself(self, house: tuple[Process, Web], browser: Browser, tmp_path: Path, width: int, scheme: int) -> None:
        proxy, web = house
        busy(proxy)
        picture = tmp_path / "page.png"
        options = (f"--window-size={width},1400", f"--blink-settings=preferredColorScheme={scheme}")
        browser.run(f"http://127.0.0.1:{web.port}/", f"--screenshot={picture}", *options)
        data = picture.read_bytes()
        assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20]) == width and len(data) > 20_000
