"""Flags, variables, make targets and paths that the pages name in sentences are there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sidecar.config.environment import CONFIG_FILE
from sidecar.config.options import OPTIONS, variable
from tests.docs.pages import PAGES, REPO, prose
from tests.unit.test_stock_flags import STOCK_FLAGS

_OURS = (
    *(["-m", "sidecar", command, "--help"] for command in ("serve", "status", "wait", "doctor")),
    *(["-m", "sidecar", command, "--help"] for command in ("size", "replay", "connector")),
    ["-m", "sidecar", "worker-args", "--help"],
    *(["-m", "launch", command, "--help"] for command in ("agg", "disagg", "vllm", "stop")),
    ["-m", "bench", "--help"],
    ["-m", "bench.gpu", "--help"],
    ["-m", "tests.gpu.quick", "--help"],
    ["-m", "tests.faults.campaign", "--help"],
    ["-m", "examples.gain", "--help"],
)
# Those of vLLM and Dynamo, and of docker.
_THEIRS = {
    *("--kv-transfer-config", "--no-enable-prefix-caching", "--tensor-parallel-size"),
    *("--kv-events-config", "--disable-hybrid-kv-cache-manager", "--block-size"),
    *("--enable-cumem-allocator", "--no-enable-cumem-allocator"),
    *("--disaggregation-mode", "--connector", "--shm-size", "--build-arg"),
    *("--enable-lora", "--enable-prompt-embeds", "--mm-processor-cache-gb", "--runner"),
    *("--hf-overrides", "--revision", "--quantization", "--max-model-len"),
    *("--kv-offloading-backend", "--kv-offloading-size", "--language-model-only"),
}
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
_TOP = ("sidecar", "connectors", "scripts", "launch", "examples", "configs", "tests", "k8s")


def _code(page: Path) -> Iterator[str]:
    """The code in sentences and tables."""
    yield from re.findall(r"`([^`]+)`", prose(page))


@cache
def _flags() -> set[str]:
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    runs = [
        subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, text=True, cwd=REPO, env=environment
        )
        for words in _OURS
    ]
    texts = [run.communicate(timeout=60)[0] for run in runs]
    return {flag for text in texts for flag in _FLAG.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_are_known(page: Path) -> None:
    named = {flag for code in _code(page) for flag in _FLAG.findall(code)}
    assert named <= _flags() | set(STOCK_FLAGS) | _THEIRS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_are_known(page: Path) -> None:
    named = {word for code in _code(page) for word in re.findall(r"KV_SIDECAR_\w+", code)}
    known = {CONFIG_FILE, *map(variable, OPTIONS)}
    assert {word for word in named if not word.endswith("_")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_and_paths_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    for code in _code(page):
        word, _, rest = code.partition(" ")
        if word == "make" and rest:
            assert rest.split()[0] in targets, code
        if re.fullmatch(rf"({'|'.join(_TOP)})/[\w./-]*", word):
            assert (REPO / word).exists(), code
