"""What `make dist` builds, installed into empty environments, where the repository is not."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import connectors
from tests.support.server import REPO, Server

# Not `build` alone: the folder that `make k8s` fills has this name.
pytest.importorskip("build.env", reason="build is not installed")
pytest.importorskip("hatchling", reason="hatchling is not installed")

VERSION = connectors.__version__
SERVER = f"kv_sidecar-{VERSION}-py3-none-any.whl"
CONNECTORS = f"kv_sidecar_connectors-{VERSION}-py3-none-any.whl"
SDIST = f"kv_sidecar-{VERSION}.tar.gz"
# What runs within vLLM needs what vLLM brings; all else needs nothing.
IMPORT_ALL = """
import importlib, importlib.metadata, pkgutil
import connectors
from connectors import lmcache_mp, offloading, roles
for module in pkgutil.iter_modules(connectors.__path__, "connectors."):
    if module.name != "connectors.vllm_parser":
        importlib.import_module(module.name)
for server in (lmcache_mp.CacheServer(), offloading.NativeServer()):
    assert roles.aggregated(server)["kv_role"] == "kv_both"
assert importlib.util.find_spec("connectors.native.spec")
assert importlib.metadata.requires("kv-sidecar-connectors") is None
assert [d.name for d in importlib.metadata.distributions()] == ["kv-sidecar-connectors"]
print(connectors.__version__, importlib.metadata.version("kv-sidecar-connectors"))
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "scripts.dist", "--to", folder, cwd=REPO)
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an environment with nothing in it, not even pip."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    return tmp_path / "venv" / "bin" / "python"


def run(*command: object, cwd: Path) -> str:
    """What it prints. Elsewhere than in the repository none of this session's paths count."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(python: Path, *what: object) -> None:
    """By this environment's pip, which knows the machine's package index."""
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
    run(*pip, "--disable-pip-version-check", *what, cwd=python.parent)


def test_they_have_all_that_they_should(dist: Path) -> None:
    assert {path.name for path in dist.iterdir()} == {SERVER, CONNECTORS, SDIST}
    server, alone = contents(dist / SERVER), contents(dist / CONNECTORS)
    assert server.keys() == tree("sidecar") | tree("connectors")
    # Where both are installed, one overwrites the other with the same.
    assert alone == {name: server[name] for name in tree("connectors")}
    with tarfile.open(dist / SDIST) as sdist:
        names = {name.partition("/")[2]: name for name in sdist.getnames()}
        for folder in ("launch", "k8s", "configs", "docs", "examples", "scripts", "tests"):
            assert tree(folder) <= names.keys()
        assert {"Makefile", "compose.yaml", "Dockerfile", "Dockerfile.worker"} <= names.keys()
        assert sdist.getmember(names["launch/run.sh"]).mode & 0o111


def test_the_server_runs_from_its_wheel(
    dist: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(python, dist / SERVER)
    command = python.with_name("kv-sidecar")
    assert run(command, "--version", cwd=tmp_path) == f"kv-sidecar {VERSION}\n"
    # -I: the repository, where Server starts it, does not count.
    monkeypatch.setenv("KV_SIDECAR_SERVER_CMD", f"{python} -I -m sidecar serve")
    server = Server(tmp_path).start()
    try:
        assert run(command, "status", "--url", server.http, cwd=tmp_path)
        assert server.request("/")[0] == 200
        assert server.terminate() == 0
    finally:
        server.stop()


def test_the_connectors_need_nothing_but_python(dist: Path, python: Path, tmp_path: Path) -> None:
    install(python, "--no-index", dist / CONNECTORS)
    assert run(python, "-c", IMPORT_ALL, cwd=tmp_path).split() == [VERSION, VERSION]


def test_images_of_the_manifests_have_the_version() -> None:
    images = yaml.safe_load((REPO / "k8s/values/images/kustomization.yaml").read_text())["images"]
    ours = {image["newTag"] for image in images if image["name"].startswith("kv-sidecar")}
    assert ours == {VERSION}


def contents(wheel: Path) -> dict[str, bytes]:
    """What it installs into site-packages, by name, less metadata and licence."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/" not in name and not name.endswith("/LICENSE")
        }


def tree(folder: str) -> set[str]:
    """The repository's files there, by name."""
    return {
        str(path.relative_to(REPO))
        for path in (REPO / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "pyproject.toml"
    }
