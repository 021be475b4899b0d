"""What a stand-in's call is checked for, and which test runs the real program that way.

A program that is not in `PROGRAMS` has no stand-in: a block that calls it fails.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import yaml

from connectors import __version__, offloading, roles
from connectors.lmcache_mp import CacheServer
from connectors.offloading import NativeServer
from launch import options
from scripts import gpu_wheels
from sidecar.config import load
from tests.docs.pages import REPO
from tests.unit.test_stock_flags import STOCK_FLAGS

Words = Sequence[str]


class Program(NamedTuple):
    """`check` raises AssertionError; `run_by` is the test that runs the real thing, or why none."""

    check: Callable[[Words], object]
    run_by: str


def check(call: Words) -> None:
    """Raises AssertionError if a program would not take these words."""
    PROGRAMS[call[0]].check(call[1:])


def _vllm(words: Words) -> None:
    assert words[0] == "serve"
    if "--kv-transfer-config" in words:
        _sidecars_client(words)


def _sidecars_client(words: Words) -> None:
    given = json.loads(words[words.index("--kv-transfer-config") + 1])
    native = given["kv_connector"] == offloading.NAME
    made = roles.aggregated(NativeServer() if native else CacheServer())
    assert given == made | {"kv_connector_extra_config": given["kv_connector_extra_config"]}


def _lmcache(words: Words) -> None:
    if words[0] == "server":
        assert {word for word in words if word.startswith("-")} <= set(STOCK_FLAGS)
    else:
        assert list(words) == ["kvcache", "clear"]


def _docker(words: Words) -> None:
    {"build": _docker_build, "run": _docker_run, "compose": _docker_compose}[words[0]](words[1:])


def _docker_build(words: Words) -> None:
    parser = _Strict()
    parser.add_argument("-t", required=True)
    parser.add_argument("-f", default="Dockerfile")
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("context", choices=["."])
    given = parser.parse_args(words)
    text = (REPO / given.f).read_text()
    for argument in given.build_arg:
        assert re.search(rf"^ARG {argument.partition('=')[0]}\b", text, re.MULTILINE), argument


def _docker_run(words: Words) -> None:
    end = words.index("kv-sidecar")
    assert words[:end] == ["--shm-size", "20g"]
    assert words[end + 1] == "serve"
    assert load(words[end + 2 :], {}).config.l1_size_gb < 20


def _docker_compose(words: Words) -> None:
    assert list(words) == ["up", "--build"]


def _kubectl(words: Words) -> None:
    if words[0] == "apply":
        assert words[1] == "-k"
        assert (REPO / words[2] / "kustomization.yaml").is_file()
        return
    if words[0] == "set":
        assert list(words[1:3]) == ["image", "pod/POD"] and words[3].startswith("kv-sidecar=")
        return
    assert words[0] == "exec" and words[1] in ("POD", "deploy/vllm-worker")
    assert list(words[2:4]) == ["-c", "kv-sidecar"]
    worker = yaml.safe_load((REPO / "k8s" / "vllm" / "deployment.yaml").read_text())
    assert worker["metadata"]["name"] == "vllm-worker"


def _make(words: Words) -> None:
    command = ["make", "-n", "-C", str(REPO), *words]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _python(words: Words) -> None:
    assert words[0] == "-m"
    module, arguments = words[1], words[2:]
    if module == "dynamo.vllm":
        assert json.loads(arguments[arguments.index("--kv-transfer-config") + 1])
    elif module == "launch.tiny_model":
        assert len(arguments) == 1
    else:
        flags = {word for word in arguments if word.startswith("--")}
        assert flags <= set(re.findall(r"--[\w-]+", _help(module)))


@cache
def _help(module: str) -> str:
    command = [sys.executable, "-m", module, "--help"]
    run = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True, timeout=60)
    return run.stdout


def _pip(words: Words) -> None:
    assert words[0] == "install"
    for wheel in words[1:]:
        match = re.fullmatch(r"dist/(\w+)-(.+)-py3-none-any\.whl(?:\[([\w,]+)\])?", wheel)
        assert match, wheel
        assert match[1] in ("kv_sidecar", "kv_sidecar_connectors"), wheel
        assert match[2] == __version__
        assert set((match[3] or "launch").split(",")) <= _extras()


def _extras() -> set[str]:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def _install(groups: Words) -> None:
    text = (REPO / "scripts" / "install.py").read_text()
    for group in groups:
        assert re.search(rf"^{group} ", text, re.MULTILINE), group


def _wheels(words: Words) -> None:
    gpu_wheels.parser().parse_args(words)


def _stack(topology: options.Topology) -> Callable[[Words], object]:
    return lambda words: options.parse(topology, words, {})


def _without_arguments(words: Words) -> None:
    assert not words


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise AssertionError(message)


_EXAMPLES = "tests/e2e/test_examples.py::test_the_second_offline_run_takes_what_the_first_stored"
_DYNAMO = "tests/e2e/test_stacks.py::test_aggregated_output_from_the_cache"
_STACK = "tests/faults/test_launch.py::test_a_stack_serves_shows_its_state_and_ends"
_WHEEL = "tests/dist/test_dist.py::test_the_server_runs_from_its_wheel"
PROGRAMS = {
    "vllm": Program(
        _vllm, "tests/e2e/test_vllm.py::test_the_cached_output_equals_the_computed_one"
    ),
    "lmcache": Program(_lmcache, "tests/conformance/test_stock_tools.py::test_clear"),
    "docker": Program(_docker, "tests/images/test_images.py::test_the_server_runs"),
    "kubectl": Program(
        _kubectl,
        "tests/k8s/test_server.py::test_a_rendered_command_line_starts_a_healthy_server",
    ),
    "make": Program(_make, "no test: `make test` is what runs the tests"),
    "python": Program(_python, _EXAMPLES),
    "python3": Program(_python, _DYNAMO),
    ".venv/bin/python": Program(_python, "no test: the benchmark takes minutes"),
    ".venv/gpu/bin/python": Program(_python, "no test: no GPU"),
    "pip": Program(_pip, _WHEEL),
    "pipx": Program(_pip, _WHEEL),
    "scripts/install.py": Program(_install, "no test: `make test` begins with it"),
    "scripts/gpu_wheels.py": Program(
        _wheels, "tests/unit/test_gpu_quick.py::test_what_is_collected"
    ),
    "launch/agg.sh": Program(_stack("agg"), _DYNAMO),
    "launch/disagg.sh": Program(
        _stack("disagg"),
        "tests/e2e/test_stacks.py::test_disaggregated_output_equals_that_of_one_engine",
    ),
    "launch/vllm.sh": Program(_stack("vllm"), _STACK),
    "launch/status.sh": Program(_without_arguments, _STACK),
    "launch/stop.sh": Program(_without_arguments, _STACK),
}
