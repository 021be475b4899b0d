"""A bare Debian that debootstrap makes, and images that buildah builds on it: base images need a
registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import REPO

HERE = Path(__file__).parent
# That of the base's Python.
PYTHON = "3.11"
DEBIAN = "bookworm"
PACKAGES = f"python{PYTHON},python{PYTHON}-venv,python3-distutils,python3-lib2to3,ca-certificates"
# What kv-sidecar's commands find in a worker's image: every vLLM has these.
WORKER_BASE = """FROM localhost/base
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install msgspec numpy pyyaml
ENV PATH=/opt/venv/bin:$PATH
"""
TIMEOUT = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("buildah", "debootstrap") if not shutil.which(name)]
    reason = f"{' and '.join(missing)} not installed" if missing else ""
    if os.geteuid() != 0:
        reason = "images are built as root only"
    for item in items:
        if reason and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


class Buildah:
    """buildah with a store, and an index of Python packages, of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._command = ["buildah", "--root", str(root / "store"), "--runroot", str(root / "run")]
        self._environment = os.environ | {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}

    def _arguments(self, *arguments: str) -> list[str]:
        return [*self._command, *arguments]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs to its end; the caller looks at the exit code."""
        # Not pipes: of a command in a container, buildah 1.28 now and then loses what it wrote
        # into one.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                self._arguments(*arguments),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=TIMEOUT,
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, done.returncode, out.read(), err.read())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self._arguments(*arguments), env=self._environment, text=True)

    def build(self, tag: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`docker build -t TAG ARGUMENTS`, with the packages for pip at hand."""
        wheels, settings = self.root / "wheels", self.root / "pip.conf"
        settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        mounts = ["-v", f"{wheels}:/wheels:ro", "-v", f"{settings}:/etc/pip.conf:ro"]
        # Docker's format: the other has no health checks.
        return self("build", "--format", "docker", "-t", tag, *mounts, *arguments)

    def config(self, image: str) -> Any:
        done = self("inspect", "--type", "image", image)
        return json.loads(done.stdout)["Docker"]["config"]


@pytest.fixture(scope="session")
def bare_debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of a Debian with Python and nothing else. Tests copy it, and change nothing."""
    tree = tmp_path_factory.mktemp("debian") / "root"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(tree)],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT,
    )
    yield tree
    shutil.rmtree(tree)


@pytest.fixture(scope="session")
def buildah(bare_debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """With the image `localhost/base`."""
    root = tmp_path_factory.mktemp("images")
    # Containers' other users must get to their files.
    for folder in (root, *root.parents[:2]):
        folder.chmod(0o755)
    tool = Buildah(root)
    _make_base(root / "base", bare_debian)
    done = tool("build", "-t", "localhost/base", str(root / "base"))
    assert done.returncode == 0, done.stderr
    _fetch_wheels(root / "wheels")
    yield tool
    tool("rm", "--all")
    tool("rmi", "--all", "--force")
    shutil.rmtree(root)


def _make_base(folder: Path, tree: Path) -> None:
    folder.mkdir()
    archive = ["tar", "-C", str(tree), "--numeric-owner", "-cf", str(folder / "rootfs.tar"), "."]
    subprocess.run(archive, check=True, timeout=TIMEOUT)
    (folder / "Containerfile").write_text("FROM scratch\nADD rootfs.tar /\n")


def _fetch_wheels(folder: Path) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    options = ["--only-binary=:all:", "--python-version", PYTHON, "-q", "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *wanted]
    subprocess.run(command, check=True, timeout=TIMEOUT)


@pytest.fixture(scope="session")
def server_image(buildah: Buildah) -> str:
    done = buildah.build("kv-sidecar", "--build-arg", "BASE=localhost/base", str(REPO))
    assert done.returncode == 0, done.stderr
    return "localhost/kv-sidecar"


@pytest.fixture(scope="session")
def worker_base(buildah: Buildah) -> str:
    folder = buildah.root / "worker"
    folder.mkdir()
    (folder / "Containerfile").write_text(WORKER_BASE)
    done = buildah.build("worker-base", str(folder))
    assert done.returncode == 0, done.stderr
    return "localhost/worker-base"
