"""What the operators' documents say of memory and of the image is what the program and the Dockerfile do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.cgroup import AT_REST, FOR_CLIENTS, MB, PARENT, exceeds, needed
from tests.harness import ROOT, SYSTEM, pannier, redis_server

OPERATIONS, CONTAINER, KUBERNETES = (
    re.sub(r"\s+", " ", (ROOT / f"docs/{name}.md").read_text()) for name in ("operations", "container", "kubernetes")
)


class TestTheLimit:
    """One rule, in each document as in the warning at the start."""

    def test_is_the_same_everywhere(self) -> None:
        rule = f"`max_memory` and {(AT_REST + FOR_CLIENTS) // MB} M"
        assert f"at least {rule}B" in OPERATIONS and f"at least {rule}B" in CONTAINER and f"no less than {rule}i" in KUBERNETES
        for document in (OPERATIONS, CONTAINER, KUBERNETES):
            assert "`max_memory` and 128 M" in document
        assert needed(64 * MB) == (64 + 72) * MB
        assert exceeds(64 * MB, 136 * MB - 1) and not exceeds(64 * MB, 136 * MB)

    def test_of_little_memory(self) -> None:
        assert f"less than {FOR_CLIENTS // MB}mb" in CONTAINER
        assert f"twice `max_memory` and {AT_REST // MB} MB" in CONTAINER
        assert needed(8 * MB) == 2 * 8 * MB + AT_REST

    def test_of_several_workers(self) -> None:
        assert f"take {AT_REST // MB} MB each and {PARENT // MB} MB for their parent" in CONTAINER

    def test_what_a_process_takes_at_rest_is_what_is_reckoned_with(self) -> None:
        assert f"takes about {AT_REST // MB} MB at rest" in OPERATIONS
        assert f"without clients or entries takes {AT_REST // MB} MB" in CONTAINER


@pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
def test_an_entry_costs_what_is_said(tmp_path: Path) -> None:
    told = re.search(r"a value of 3 bytes under a key of 16 costs (\d+) bytes", OPERATIONS)
    assert told
    with (
        redis_server(str(SYSTEM), tmp_path) as redis,
        pannier(f"redis://127.0.0.1:{redis.port}", tmp_path) as process,
        process.connect() as sock,
    ):
        file = sock.makefile("rb")
        sock.sendall(b"SET key:123456789012 abc\r\n")
        assert file.readline() == b"+OK\r\n"
        for _ in range(3):
            sock.sendall(b"GET key:123456789012\r\n")
            assert [file.readline(), file.readline()] == [b"$3\r\n", b"abc\r\n"]
        sock.sendall(b"INFO sidecar\r\n")
        info = file.read(int(file.readline()[1:])).decode()
        assert "pannier_tier_entries:1\r\n" in info
        assert f"pannier_tier_bytes:{told[1]}\r\n" in info


def test_what_is_not_the_same_in_each_image_is_said() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    loose = {
        "`apt-get`": re.search(r"apt-get install(?!.*=)", dockerfile),
        "newest setuptools": "--no-build-isolation" not in dockerfile,
        "not hashes": "--hash" not in (ROOT / "deploy/container/requirements.txt").read_text(),
    }
    for words, is_so in loose.items():
        assert (words in CONTAINER) is bool(is_so), words
    assert "same source gives the same image" not in CONTAINER
