"""Every relative link of the pages leads somewhere, and every page is found."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPO, anchors, prose

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_found_from_the_readme() -> None:
    index = REPO / "docs" / "index.md"
    assert index in _linked(REPO / "README.md")
    assert {page for page in PAGES if page.parent == index.parent} <= {index, *_linked(index)}


def _linked(page: Path) -> set[Path]:
    return {page.parent / link.partition("#")[0] for link in _LINK.findall(prose(page))}
