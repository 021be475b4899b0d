"""An adapter of a package that is not the server's: named by module and class, like any other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sidecar.config import ConfigError, load
from sidecar.tiers.tiers import labels
from tests.support.tiers import Bench, Memory

PACKAGE = '''
from typing import Annotated

from msgspec import Meta

from sidecar.tiers.settings import AdapterSettings
from tests.support.tiers import Memory


class Store(AdapterSettings, frozen=True, kw_only=True):
    """Keeps records somewhere."""

    url: Annotated[str, Meta(min_length=1)]
    api_token: str = ""

    def build(self):
        made = Memory()
        made.url = self.url
        return made


NotSettings = int
'''


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "their_store"
    directory.mkdir()
    (directory / "__init__.py").touch()
    (directory / "adapter.py").write_text(PACKAGE)
    (directory / "broken.py").write_text("import that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("their_store")]:
        monkeypatch.delitem(sys.modules, name)


def given(spec: str) -> list[str]:
    return ["--l1-size-gb", "1", "--l2-adapter", spec]


def test_it_is_configured_and_used_like_any_other() -> None:
    spec = '{"type": "their_store.adapter:Store", "url": "store://here", "num_workers": 2}'
    (adapter,) = load(given(spec), {}).config.l2_adapter
    assert labels([adapter.settings]) == ["Store"]
    built = adapter.settings.build()
    assert isinstance(built, Memory) and built.url == "store://here"  # type: ignore[attr-defined]
    bench = Bench(built).start()
    bench.store(1, 2)
    bench.settle()
    bench.l1.clear(force=False)
    assert bench.lookup(1, 2) == 2


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ('{"type": "their_store.adapter:Store"}', "missing required field `url`"),
        ('{"type": "their_store.adapter:Store", "url": "a", "uri": 1}', "unknown field `uri`"),
        ('{"type": "their_store.adapter:Nothing"}', "no attribute 'Nothing'"),
        ('{"type": "their_store.adapter:NotSettings"}', "no subclass of"),
        ('{"type": "their_store.broken:Store"}', "that_is_not_there"),
        ('{"type": "nowhere:Store"}', "No module named 'nowhere'"),
        ('{"type": ":"}', "cannot be loaded"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        load(given(spec), {})
    assert "\n" not in str(caught.value)


def test_its_secrets_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from sidecar.cli import main

    spec = '{"type": "their_store.adapter:Store", "url": "a", "api_token": "hunter2"}'
    assert main(["serve", *given(spec), "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out and "their_store.adapter:Store" in out
