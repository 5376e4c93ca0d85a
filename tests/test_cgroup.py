"""The memory limit: read from made-up control groups and from a real one, and what follows from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.cgroup import AT_REST, FOR_CLIENTS, MB, exceeds, fitting_memory, memory_limit
from proxy.resp.errors import SettingsError
from proxy.settings import BY_NAME, load
from tests.harness import SYSTEM, redis_server, reserved, running, wait_until

V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"
UNLIMITED = "9223372036854771712\n"


class Tree:
    """Control groups as a process sees them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def own(self, *lines: str) -> None:
        self.write("proc/self/cgroup", "".join(f"{line}\n" for line in lines))

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    @property
    def limit(self) -> int | None:
        return memory_limit(self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class TestVersion2:
    def test_ones_own_group_as_the_root_of_a_namespace(self, tree: Tree) -> None:
        tree.own("0::/")
        tree.write(f"{V2}/memory.max", "134217728\n")
        assert tree.limit == 128 * MB

    def test_the_least_on_the_way_up(self, tree: Tree) -> None:
        tree.own("0::/kubepods/pod1/c1")
        tree.write(f"{V2}/kubepods/memory.max", "300000000\n")
        tree.write(f"{V2}/kubepods/pod1/memory.max", "100000000\n")
        tree.write(f"{V2}/kubepods/pod1/c1/memory.max", "200000000\n")
        tree.write(f"{V2}/kubepods/pod2/memory.max", "1000\n")
        assert tree.limit == 100_000_000

    def test_max_is_none(self, tree: Tree) -> None:
        tree.own("0::/a")
        tree.write(f"{V2}/a/memory.max", "max\n")
        assert tree.limit is None

    def test_a_path_outside_of_the_namespace(self, tree: Tree) -> None:
        tree.own("0::/../../other")
        tree.write(f"{V2}/memory.max", "5000000\n")
        tree.write("sys/other/memory.max", "1\n")
        assert tree.limit == 5_000_000


class TestVersion1:
    OTHERS = ("9:name=systemd:/", "8:pids:/", "3:cpuset:/", "0::/")

    def test_ones_own_group(self, tree: Tree) -> None:
        tree.own(*self.OTHERS, "4:memory:/docker/abc")
        tree.write(f"{V1}/memory.limit_in_bytes", UNLIMITED)
        tree.write(f"{V1}/docker/abc/memory.limit_in_bytes", "67108864\n")
        assert tree.limit == 64 * MB

    def test_what_is_mounted_is_ones_own_group(self, tree: Tree) -> None:
        """A container without a namespace of control groups: the path is the host's."""
        tree.own(*self.OTHERS, "4:cpu,memory:/docker/abc")
        tree.write(f"{V1}/memory.limit_in_bytes", "67108864\n")
        assert tree.limit == 64 * MB

    def test_the_greatest_number_is_none(self, tree: Tree) -> None:
        tree.own("4:memory:/")
        tree.write(f"{V1}/memory.limit_in_bytes", UNLIMITED)
        assert tree.limit is None


class TestWhatIsNotThere:
    def test_no_control_groups(self, tree: Tree) -> None:
        assert tree.limit is None

    def test_no_files(self, tree: Tree) -> None:
        tree.own("0::/a/b", "4:memory:/a/b", "", "nonsense", "1:2")
        assert tree.limit is None

    def test_files_that_say_nothing(self, tree: Tree) -> None:
        tree.own("0::/")
        for text in ("", "\n", "-1", "ten", "²"):
            tree.write(f"{V2}/memory.max", text)
            assert tree.limit is None


class TestWhatFits:
    @pytest.mark.parametrize(
        ("limit", "fitting"),
        [(None, 64), (1024, 64), (176, 64), (175, 63), (128, 40), (96, 24), (64, 8), (50, 1), (20, 1), (0, 1)],
    )
    def test_by_default(self, limit: int | None, fitting: int) -> None:
        found = fitting_memory(64 * MB, None if limit is None else limit * MB)
        assert found == fitting * MB
        assert not limit or limit < 50 or not exceeds(found, limit * MB)

    def test_full_memory_leaves_room_for_clients(self) -> None:
        assert not exceeds(64 * MB, None)
        assert not exceeds(64 * MB, AT_REST + FOR_CLIENTS + 64 * MB)
        assert exceeds(64 * MB + 1, AT_REST + FOR_CLIENTS + 64 * MB)
        assert not exceeds(8 * MB, AT_REST + 16 * MB)
        assert exceeds(8 * MB + 1, AT_REST + 16 * MB)

    def test_the_documentation_names_the_limit_from_which_on_the_default_holds(self) -> None:
        option = BY_NAME["max_memory"]
        assert "below 176mb" in option.help
        assert fitting_memory(option.default, 176 * MB) == option.default > fitting_memory(option.default, 176 * MB - 1)


class TestSettings:
    def test_the_default_fits_and_says_why(self) -> None:
        settings, origins = load({}, {}, None, memory_limit=128 * MB)
        assert settings.max_memory == 40 * MB
        assert origins["max_memory"] == "default, under a memory limit of 128mb"

    def test_where_the_limit_is_high_it_is_as_ever(self) -> None:
        settings, origins = load({}, {}, None, memory_limit=1024 * MB)
        assert (settings.max_memory, origins["max_memory"]) == (64 * MB, "default")

    def test_what_is_given_holds(self) -> None:
        settings, origins = load({}, {"PANNIER_MAX_MEMORY": "100mb"}, None, memory_limit=64 * MB)
        assert (settings.max_memory, origins["max_memory"]) == (100 * MB, "environment PANNIER_MAX_MEMORY")

    def test_tenants_whose_shares_do_not_fit_are_told_of_the_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text('[tenants.acme]\npassword = "pw"\nmax_memory = "60mb"\n')
        load({}, {}, str(path), memory_limit=None)
        with pytest.raises(SettingsError) as caught:
            load({}, {}, str(path), memory_limit=128 * MB)
        assert str(caught.value) == (
            f"{path}:tenants: the tenants' max_memory comes to 60mb; lower it or raise the setting max_memory "
            "(40mb, default, under a memory limit of 128mb), of which 1mb must be left for the others"
        )


@pytest.fixture
def group() -> Iterator[Path]:
    """A real control group below that of the tests, limited to 100 MB."""
    mine = next((line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), None)
    base = Path("/sys/fs/cgroup", "memory", mine[2].lstrip("/")) if mine else Path("/sys/fs/cgroup")
    path = base / f"pannier-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        limit = path / ("memory.limit_in_bytes" if mine else "memory.max")
        try:
            limit.write_text(str(100 * MB))
        except OSError as error:
            pytest.skip(f"the memory of control groups cannot be limited here: {error}")
        yield path
    finally:
        path.rmdir()


def within(group: Path, *command: str) -> list[str]:
    """The command, run in the group."""
    return ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh", *command]


class TestARealGroup:
    def test_config_shows_the_origin(self, group: Path) -> None:
        command = within(group, sys.executable, "-m", "proxy", "config", "--json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["max_memory"] == {
            "value": 26 * MB, "unit": "bytes", "origin": "default, under a memory limit of 100mb"
        }  # fmt: skip

    @pytest.mark.parametrize(("size", "remarked"), [("28mb", False), ("29mb", True)])
    def test_check_remarks_what_does_not_fit(self, size: str, remarked: bool, group: Path) -> None:
        command = within(group, sys.executable, "-m", "proxy", "check", "--json", "--max-memory", size)
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        found = json.loads(done.stdout)
        assert found["ok"] and any("does not fit under" in remark for remark in found["remarks"]) is remarked

    @pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--log-format", "text"], "kept in up to 26mb (default, under a memory limit of 100mb); Redis tells"),
            (["--log-format", "json"], "max_memory is 26mb, default, under a memory limit of 100mb"),
            (
                ["--max-memory", "64mb"],
                "max_memory 64mb does not fit under the memory limit of 100mb: Pannier takes 48mb beside, clients "
                "some more, and it may be killed when memory is full; raise the limit to 136mb, or lower max_memory to 26mb",
            ),
            (["--max-memory", "28mb"], ""),
        ],
    )  # fmt: skip
    def test_the_start_tells(self, options: list[str], said: str, group: Path, tmp_path: Path) -> None:
        """In the banner, in the log, as a warning where what is given does not fit; otherwise nothing."""
        command = [sys.executable, "-m", "proxy", "--admin-listen", "off", *options]
        with redis_server(str(SYSTEM), tmp_path) as redis, reserved(None) as port:
            command += ["--upstream", f"redis://127.0.0.1:{redis.port}", "--listen", str(port)]
            with running(within(group, *command), port, tmp_path) as process:
                wait_until(lambda: '"listening"' in process.output or "Ctrl-C" in process.output)
                assert said in process.output
                assert bool(said) is ("memory limit" in process.output)
