"""The site builds without a warning, shows every page, and refuses a link that leads nowhere."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPO

pytestmark = pytest.mark.skipif(
    not (find_spec("sphinx") and find_spec("myst_parser") and find_spec("furo")),
    reason="needs `scripts/install.py docs`",
)


def build(source: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(source), str(to)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_make_docs_builds_it(tmp_path: Path) -> None:
    assert "-m sphinx -W --keep-going -q docs build/site" in (REPO / "Makefile").read_text()
    run = build(REPO / "docs", tmp_path)
    assert run.returncode == 0, run.stderr
    pages = [page for page in PAGES if page.parent == REPO / "docs"]
    search = (tmp_path / "searchindex.js").read_text()
    for page in pages:
        assert (tmp_path / f"{page.stem}.html").is_file()
        assert f'"{page.stem}"' in search
    assert "https://fonts." not in (tmp_path / "index.html").read_text()


def test_a_link_that_leads_nowhere_fails(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    settings = (REPO / "docs" / "conf.py").read_text()
    (source / "conf.py").write_text(settings + '\nNAVIGATION = {"All": ("other",)}\n')
    (source / "other.md").write_text("# Other\n")
    (source / "unlisted.md").write_text("# In no navigation\n")
    wrong = ("nowhere.md", "other.md#no-heading", "#nothing", "../no-file.yaml")
    links = "\n".join(f"[link]({link})\n" for link in ("other.md#other", *wrong))
    (source / "index.md").write_text(f"# Index\n\n{links}")
    run = build(source, tmp_path / "site")
    assert run.returncode != 0
    for word in ("nowhere.md", "no-heading", "nothing", "no-file.yaml", "unlisted.md"):
        assert word in run.stderr
    assert len(run.stderr.strip().splitlines()) == len(wrong) + 1, run.stderr
