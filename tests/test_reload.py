"""Settings read again: what takes effect, what does not, and that nothing broken does."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import threading
from pathlib import Path

import pytest

from proxy import reload as module
from proxy.logs import configure
from proxy.reload import Reloader
from proxy.settings import Settings, load

ONE = '[[rules]]\nmatch = "a"\n'
TWO = '[[rules]]\nmatch = "b"\n'


class House:
    """Files of settings and of rules, and who follows them."""

    def __init__(self, directory: Path, rules: str = ONE, config: str = "") -> None:
        self.rules, self.config = directory / "rules.toml", directory / "pannier.toml"
        self.rules.write_text(rules)
        self.config.write_text(f'rules_file = "{self.rules}"\n{config}')
        self.applied: list[Settings] = []
        self.reloader = Reloader(self.load(), self.load, str(self.config), self.applied.append)

    def load(self) -> Settings:
        return load({}, {}, str(self.config))[0]

    def replace(self, path: Path, text: str) -> None:
        """Put another file in its place."""
        other = path.with_suffix(".new")
        other.write_text(text)
        os.replace(other, path)

    @property
    def patterns(self) -> list[list[str]]:
        """The rules each time they came into force."""
        return [[rule.shown for rule in settings.rules] for settings in self.applied]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


class TestReading:
    def test_puts_other_rules_in_force(self, house: House) -> None:
        house.replace(house.rules, ONE + TWO)
        house.reloader.reload("SIGHUP")
        assert house.patterns == [["a", "b"]] and house.reloader.reloads == 1
        house.replace(house.rules, "")
        house.reloader.reload("SIGHUP")
        assert house.patterns == [["a", "b"], []]

    def test_a_refresh_that_only_another_l1_ttl_would_allow_waits_with_that(self, house: House) -> None:
        """Which takes effect at the next start only."""
        house.replace(house.rules, '[[rules]]\nmatch = "a"\nrefresh_ahead = "10m"\n')
        house.replace(house.config, f'rules_file = "{house.rules}"\nl1_ttl = "20m"\n')
        house.reloader.reload("SIGHUP")
        assert not house.applied
        assert ".refresh_ahead: '10m' is not before the end of the l1_ttl in force, 5m" in house.reloader.trouble

    def test_each_broken_save_is_in_the_log(self, house: House) -> None:
        stream = io.StringIO()
        logger = logging.getLogger()
        level = logger.level
        output = configure("text", "info", stream)
        try:
            for number in range(9):
                house.replace(house.rules, f'[[rules]]\nmatch = "a"\nl1_ttl = "wrong {number}"\n')
                house.reloader.reload("a file has changed")
            house.replace(house.rules, TWO)
            for _ in range(9):
                house.reloader.reload("SIGHUP")
        finally:
            logger.removeHandler(output)
            logger.setLevel(level)
        said = stream.getvalue()
        assert [f"'wrong {number}' is not a duration" in said for number in range(9)] == [True] * 9
        assert said.count("rules and mode are as they were") == 8

    def test_says_where_the_new_values_came_from(self, house: House) -> None:
        house.replace(house.config, f'rules_file = "{house.rules}"\nmode = "observe"\nmax_clients = 7\n')
        house.reloader.reload("SIGHUP")
        origins = house.applied[-1].origins
        assert origins["mode"] == f"file {house.config}:mode"
        assert origins["max_clients"] == "default", "which takes effect at the next start only"

    def test_the_same_again_changes_nothing(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            house.reloader.reload("SIGHUP")
        assert not house.applied and not house.reloader.reloads
        assert "rules and mode are as they were" in caplog.text

    def test_the_same_from_another_file_changes_nothing(self, house: House, tmp_path: Path) -> None:
        (tmp_path / "other.toml").write_text(ONE)
        house.config.write_text(f'rules_file = "{tmp_path}/other.toml"\n')
        house.reloader.reload("SIGHUP")
        assert not house.applied
        (tmp_path / "other.toml").write_text(TWO)
        assert house.reloader._look() != house.reloader._seen, "it is the other that is followed now"

    def test_takes_the_mode_as_well(self, house: House) -> None:
        house.config.write_text(f'rules_file = "{house.rules}"\nmode = "off"\n')
        house.reloader.reload("SIGHUP")
        assert [settings.mode for settings in house.applied] == ["off"]

    def test_names_what_needs_a_restart_and_does_not_apply_it(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        house.config.write_text(f'rules_file = "{house.rules}"\nmode = "observe"\nl1_ttl = "7s"\nmax_clients = 5\n')
        house.reloader.reload("SIGHUP")
        assert "take effect at the next start only: max_clients, l1_ttl" in caplog.text
        (settings,) = house.applied
        assert (settings.mode, settings.l1_ttl, settings.max_clients) == ("observe", 300.0, 10_000)

    def test_shows_no_passwords(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        house.config.write_text(f'upstream = "redis://u:s3cr3t@h:1"\nrules_file = "{house.rules}"\n[tenants.a]\npassword = "s3cr3t"\n')
        house.reloader.reload("SIGHUP")
        assert "upstream, tenants" in caplog.text and "s3cr3t" not in caplog.text


class TestWhatIsBroken:
    @pytest.mark.parametrize(("text", "said"), [("[[rules", "not valid TOML"), ('[[rules]]\nmatch = "k"\nl1_ttl = "soon"\n', "rules #1.l1_ttl: 'soon' is not a duration"), ("a = " + "[" * 100_000, "not valid TOML"), ("x = 1", "x: no such key")])
    def test_leaves_the_old_rules_and_says_why(self, house: House, caplog: pytest.LogCaptureFixture, text: str, said: str) -> None:
        house.replace(house.rules, text)
        house.reloader.reload("a file has changed")
        assert not house.applied and said in house.reloader.trouble
        assert said in caplog.text and "the old settings stay in force" in caplog.text

    def test_is_forgotten_once_it_is_mended(self, house: House) -> None:
        for text in ("[[rules", ONE, "[[rules", TWO):
            house.replace(house.rules, text)
            house.reloader.reload("a file has changed")
        assert house.patterns == [["b"]] and house.reloader.trouble == ""

    def test_a_file_that_is_gone(self, house: House) -> None:
        house.rules.unlink()
        house.reloader.reload("a file has changed")
        assert not house.applied and str(house.rules) in house.reloader.trouble


class TestFollowing:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_EVERY", 0.0)

    async def until(self, house: House, patterns: list[list[str]]) -> None:
        async with asyncio.timeout(10):
            while house.patterns != patterns:
                await asyncio.sleep(0)

    async def test_a_file_written_anew_or_put_in_its_place(self, house: House) -> None:
        watch = asyncio.create_task(house.reloader.run())
        house.replace(house.rules, TWO)
        await self.until(house, [["b"]])
        house.rules.write_text(ONE + TWO)
        await self.until(house, [["b"], ["a", "b"]])
        house.config.write_text(ONE)
        await self.until(house, [["b"], ["a", "b"], ["a"]])
        watch.cancel()

    async def test_a_mounted_config_map(self, tmp_path: Path) -> None:
        """Kubernetes puts a link to another directory in the place of `..data`; the file's name leads through it."""
        for version, text in (("v1", ONE), ("v2", TWO)):
            (tmp_path / version).mkdir()
            (tmp_path / version / "pannier.toml").write_text(text)
        (tmp_path / "..data").symlink_to("v1")
        path = tmp_path / "pannier.toml"
        path.symlink_to("..data/pannier.toml")
        applied: list[Settings] = []

        def again() -> Settings:
            return load({}, {}, str(path))[0]

        watch = asyncio.create_task(Reloader(again(), again, str(path), applied.append).run())
        await asyncio.sleep(0)
        (tmp_path / "..data_tmp").symlink_to("v2")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        async with asyncio.timeout(10):
            while not applied:
                await asyncio.sleep(0)
        assert [rule.shown for rule in applied[0].rules] == ["b"]
        watch.cancel()

    async def test_reads_beside(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many rules take long: clients are served meanwhile."""
        threads: list[threading.Thread] = []
        load = house.reloader._load

        def slow() -> Settings:
            threads.append(threading.current_thread())
            return load()

        monkeypatch.setattr(house.reloader, "_load", slow)
        watch = asyncio.create_task(house.reloader.run())
        house.replace(house.rules, TWO)
        await self.until(house, [["b"]])
        house.replace(house.rules, ONE)
        house.reloader.ask()
        await self.until(house, [["b"], ["a"]])
        assert threads and threading.main_thread() not in threads
        watch.cancel()

    async def test_what_changes_while_it_is_read(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is read once more: what was read may be what was there before."""
        load, first = house.load, True

        def slow() -> Settings:
            nonlocal first
            found = load()
            if first:
                first = False
                house.replace(house.rules, ONE + TWO)
            return found

        monkeypatch.setattr(house.reloader, "_load", slow)
        house.replace(house.rules, TWO)
        following = asyncio.create_task(house.reloader.run())
        try:
            await self.until(house, [["b"], ["a", "b"]])
        finally:
            following.cancel()

    async def test_goes_on_after_a_broken_file_and_a_missing_one(self, house: House) -> None:
        watch = asyncio.create_task(house.reloader.run())
        for breaks in (lambda: house.replace(house.rules, "[["), house.rules.unlink):
            breaks()
            async with asyncio.timeout(10):
                while not house.reloader.trouble:
                    await asyncio.sleep(0)
            house.replace(house.rules, TWO if not house.applied else ONE)
            async with asyncio.timeout(10):
                while house.reloader.trouble:
                    await asyncio.sleep(0)
        assert house.patterns == [["b"], ["a"]]
        watch.cancel()

    async def test_complains_of_a_broken_file_once(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        watch = asyncio.create_task(house.reloader.run())
        house.replace(house.rules, "[[")
        async with asyncio.timeout(10):
            while not house.reloader.trouble:
                await asyncio.sleep(0)
        for _ in range(300):
            await asyncio.sleep(0.0001)
        assert caplog.text.count("the old settings stay in force") == 1
        watch.cancel()
