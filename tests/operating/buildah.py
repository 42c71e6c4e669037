"""Debian's buildah: an image built and its file system served under `chroot`, without a daemon and without a registry.

All that is made lies in one folder, which is removed at the end. It needs root, for `chroot` and for mounts; those are
made in namespaces of their own, so that none is left.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.operating.programs import DOCKER, ROOT, program

BASE = "localhost/python-base:test"
# As compose runs it: nothing but /tmp can be written, and the user is the image's.
_CONFINED = """
root="$1" user="$2"
shift 2
mount --bind "$root" "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mount --bind /proc "$root/proc"
mount -o remount,ro,bind "$root"
exec chroot --userspec="$user" --groups= "$root" "$@"
"""


class Buildah:
    """An image store in `folder`; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folders = ["--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self._command = [program("buildah"), *folders]
        self._debootstrap = program("debootstrap")

    def __enter__(self) -> Buildah:
        return self

    def __exit__(self, *_: object) -> None:
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")
        # What is mounted is not ours to remove.
        assert str(self._folder) not in Path("/proc/self/mountinfo").read_text()
        shutil.rmtree(self._folder)

    def run(self, *arguments: str) -> str:
        """What a command of buildah prints; its errors are in the message if it fails."""
        return _run([*self._command, *arguments])

    def make_base(self) -> None:
        """A Debian with Python, which stands in for the image that the Dockerfile's FROM names."""
        container = self.run("from", "scratch").strip()
        root = self.run("mount", container).strip()
        packages = "--include=python3-venv,ca-certificates,openssl"
        _run([self._debootstrap, "--variant=minbase", packages, "bookworm", root])
        for cache in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(Path(root) / cache)
        self.run("umount", container)
        self.run("commit", "--quiet", "--rm", container, BASE)

    def build(self, tag: str, *arguments: str) -> str:
        """Build the Dockerfile on the base. What it prints on its errors' stream is returned."""
        ignored = ["--ignorefile", str(DOCKER / "Dockerfile.dockerignore"), "--file", str(DOCKER / "Dockerfile")]
        how = ["--isolation", "chroot", "--format", "docker", "--layers=false"]
        base = ["--build-arg", f"PYTHON_IMAGE={BASE}"]
        configured = _package_configuration(self._folder)
        command = [*self._command, "bud", *how, *ignored, *base, *configured, *arguments, "--tag", tag, str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stderr

    def config(self, tag: str) -> dict[str, Any]:
        """The image's entry point, environment, user and health check, as Docker has them."""
        found: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", tag))["Docker"]["config"]
        return found

    def file_system(self, tag: str) -> Path:
        """The image's files, in a folder."""
        return Path(self.run("mount", self.run("from", "--pull-never", tag).strip()).strip())


def confined(root: Path, user: str) -> list[str]:
    """What runs the command after it in the file system, as a user, with nothing but /tmp to write to."""
    return ["unshare", "--mount", "sh", "-ec", _CONFINED, "sh", str(root), user]


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder; one with several names counts once."""
    files = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            facts = (Path(place) / name).lstat()
            files[facts.st_ino] = facts.st_size
    return sum(files.values())


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def _package_configuration(folder: Path) -> list[str]:
    """What pip is told on this machine, told to the pip and uv of the build, with the local folders that it names.

    A machine that says nothing gives nothing: then both ask their own indexes.
    """
    settings = _pip_settings()
    if not settings:
        return []
    pip, uv = folder / "pip.conf", folder / "uv.toml"
    pip.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
    mounts = [(str(pip), "/etc/pip.conf")]
    if links := settings.get("find-links", "").split():
        uv.write_text(f"offline = true\nfind-links = {json.dumps(links)}\n")
        mounts.append((str(uv), "/etc/uv/uv.toml"))
    for word in " ".join(settings.values()).split():
        place = Path(word.removeprefix("file://"))
        if place.is_absolute() and place.exists():
            # Pages of a local index lead to files beside their own folder.
            kept = str(place.parent if word.startswith("file://") else place)
            mounts.append((kept, kept))
    return [part for source, target in dict.fromkeys(mounts) for part in ("--volume", f"{source}:{target}:ro")]


def _pip_settings() -> dict[str, str]:
    """Names and values of pip's settings, the environment's before those of files."""
    found: dict[str, str] = {}
    for line in _run([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        name, _, value = line.partition("=")
        found.setdefault(name.rpartition(".")[2], str(ast.literal_eval(value)))
    return found
