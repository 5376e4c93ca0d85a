"""A Dockerfile read and carried out without a container engine: as far as ours goes, on Debian, as root.

The build stage runs in an overlay over this machine's own file system, so its steps are carried out as they are
written, apt and all, and leave nothing behind. The image is made on the packages that its base consists of.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# fmt: off
DISTROLESS = [
    "base-files", "netbase", "tzdata", "libc6", "libssl3", "ca-certificates", "libgcc-s1",
    "libgomp1", "libstdc++6", "libbz2-1.0", "libdb5.3", "libexpat1", "liblzma5", "libsqlite3-0",
    "libuuid1", "libncursesw6", "libtinfo6", "python3-distutils", "zlib1g", "libcom-err2",
    "libcrypt1", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0",
    "libnsl2", "libreadline8", "libtirpc3", "libffi8", "libpython3.11-minimal",
    "libpython3.11-stdlib", "python3.11-minimal",
]
# fmt: on
"""What gcr.io/distroless/python3-debian12 is made of: cc/ and python3/ of github.com/GoogleContainerTools/distroless."""
_PREPARE = (
    f"apt-get update && cd /packages && apt-get download {' '.join(DISTROLESS)}"
    # A builder that is pulled anew has the newest Python of its release, as the base has.
    " && DEBIAN_FRONTEND=noninteractive apt-get install --yes --only-upgrade -o DPkg::Options::=--force-unsafe-io"
    " python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib"
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instructions and their texts, in order."""

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]

    def one(self, instruction: str) -> str:
        (text,) = self.all(instruction)
        return text

    @property
    def env(self) -> dict[str, str]:
        found = {"PATH": PATH}
        for text in self.all("ENV"):
            for part in shlex.split(text):
                name, _, value = part.partition("=")
                found[name] = filled_in(value, found)
        return found


def parse(text: str) -> list[Stage]:
    """The stages; ARGs before the first are filled in."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "ARG" and not stages:
            key, _, value = rest.partition("=")
            arguments[key] = value
        elif name == "FROM":
            base, _, alias = filled_in(rest, arguments).partition(" AS ")
            stages.append(Stage(base, alias))
        elif name:
            stages[-1].steps.append((name, rest.strip()))
    return stages


def filled_in(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def context(root: Path, to: Path) -> Path:
    """Copy what `.dockerignore` lets through, as the engine is sent it."""
    rules = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for path in sorted(sent(root, rules)):
        target = to / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return to


def sent(root: Path, rules: list[str]) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", ".venv", "node_modules")]
        for name in files:
            path = Path(folder, name)
            shown = path.relative_to(root).as_posix()
            out = False
            for rule in rules:  # the last that matches holds
                if matches(shown, rule.removeprefix("!")):
                    out = not rule.startswith("!")
            if not out:
                yield path


def matches(path: str, pattern: str) -> bool:
    """Whether the path, or a folder above it, matches."""
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(
        fnmatch.fnmatchcase(part, pattern)
        if "/" not in pattern
        else fnmatch.fnmatchcase("/" + part, "*" + pattern.removeprefix("**"))
        for part in above
    )


def build_script(stage: Stage, sent: Path, work: Path) -> str:
    """A script that carries out the steps of a stage below `work`/merged, and names each before it begins."""
    root = work / "merged"
    lines = [
        "set -e",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={work}/upper,workdir={work}/scratch {root}",
        f"mount --bind /proc {root}/proc",
        f"mount --bind /dev {root}/dev",
        "echo 'step: packages of the base'",
        f"mkdir {root}/packages",
        f"chroot {root} sh -c '{_PREPARE}' >/dev/null 2>&1",
    ]
    env = " ".join(shlex.quote(f"{name}={value}") for name, value in kept(stage.env).items())
    where = "/"
    for name, text in stage.steps:
        lines.append(f"echo {shlex.quote(f'step: {name} {text}')}")
        if name == "WORKDIR":
            where = text
            lines.append(f"mkdir -p {root}{where}")
        elif name == "RUN":
            command = f"cd {where} && {text}"
            lines.append(f"chroot {root} env -i {env} sh -c {shlex.quote(command)}")
        elif name == "COPY":
            *sources, target = text.split()
            to = f"{root}{where}/{target}"
            for source in sources:
                if (sent / source).is_dir():
                    lines.append(f"mkdir -p {to} && cp -r {sent}/{source}/. {to}")
                else:
                    lines.append(f"cp {sent}/{source} {to}")
        else:
            raise AssertionError(f"{name} is not known here; add it")
    return "\n".join(lines)


def kept(env: Mapping[str, str]) -> dict[str, str]:
    """The stage's environment, with what pip and others need to reach their index from this machine."""
    wanted = re.compile(r"(PIP_|SSL_|REQUESTS_|CURL_|[Hh][Tt][Tt][Pp]|[Nn][Oo]_[Pp])")
    return {name: text for name, text in os.environ.items() if wanted.match(name)} | dict(env)


def base(packages: Path, root: Path) -> None:
    """Unpack what the base image consists of."""
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    for folder in ("proc", "dev", "tmp"):
        (root / folder).mkdir(exist_ok=True)
    for alias in ("python", "python3"):
        (root / "usr/bin" / alias).unlink(missing_ok=True)
        (root / "usr/bin" / alias).symlink_to("/usr/bin/python3.11")


def inside(root: Path, stage: Stage, *command: str) -> list[str]:
    """A command in the image: its first process, as the image's user, on a file system that nobody can write to.

    SIGTERM sent to the child of the process that this starts is what an engine would send.
    """
    mounts = f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && mount -t proc proc {root}/proc"
    env = [f"{name}={value}" for name, value in stage.env.items()]
    user = stage.one("USER")
    entry = ["env", "-i", *env, "/usr/sbin/chroot", f"--userspec={user}", "--groups=", str(root), *command]
    script = f'{mounts} && exec "$@"'
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", *entry]
