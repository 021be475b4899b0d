"""What docs/troubleshooting.md quotes is what the programs say."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import REPO

PAGE = REPO / "docs" / "troubleshooting.md"
# Sections whose first column quotes messages.
_OURS = (
    "The server does not start",
    "In the server's log",
    "`/healthcheck` says 503",
    "`kv-sidecar` commands",
)
_HOLE = "\0"


def _sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _quoted(section: str) -> list[str]:
    """The messages in the first column of a section's table, but not its head."""
    rows = re.findall(r"^\| (.+?) \|", _sections()[section], flags=re.MULTILINE)
    return [text for row in rows[1:] for text in re.findall(r"`([^`]+)`", row)]


@cache
def texts(roots: tuple[Path, ...]) -> str:
    """All strings of the sources, with a hole for each value that is put into them."""
    files = (file for root in roots for file in root.rglob("*.py"))
    return "\n".join(_flat(text) for file in files for text in _strings(file))


def _flat(text: str) -> str:
    return re.sub(r"%[-.\d]*[a-zA-Z]", _HOLE, text.replace("\n", " "))


def _strings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(v.value) if isinstance(v, ast.Constant) else _HOLE for v in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_said(message: str, texts: str) -> bool:
    """Whether one string has the message's words in this order."""
    words = [re.escape(part) for part in message.split("...")]
    return re.search("[^\n]*".join(words), texts) is not None


@pytest.mark.parametrize("section", _OURS)
def test_our_messages_are_ours(section: str) -> None:
    said = texts((REPO / "sidecar", REPO / "connectors", REPO / "launch"))
    assert _quoted(section)
    for message in _quoted(section):
        assert is_said(message, said), message


_THEIRS = {
    "The worker: LMCache's client": (
        "lmcache",
        ("integration/vllm", "v1/multiprocess/transfer_context"),
    ),
    "The worker: vLLM": (
        "vllm",
        ("distributed/kv_transfer/kv_connector", "v1/core/sched", "v1/executor"),
    ),
    "The worker: Dynamo": ("dynamo", ("vllm",)),
}


@pytest.mark.parametrize("section", _THEIRS)
def test_their_messages_are_theirs(section: str) -> None:
    package, folders = _THEIRS[section]
    root = _installed(package)
    if root is None:
        pytest.skip(f"needs {package}")
    said = texts(tuple(root / folder for folder in folders))
    assert _quoted(section)
    for message in _quoted(section):
        assert is_said(message, said), message


def _installed(package: str) -> Path | None:
    """Where a package is, in this environment or in Dynamo's; it is not imported."""
    spec = importlib.util.find_spec(package)
    found = list(spec.submodule_search_locations or ()) if spec else []
    found += (REPO / ".venv" / "dynamo").glob(f"lib/python3*/site-packages/{package}")
    return Path(found[0]) if found else None


def test_every_refusal_is_explained() -> None:
    source = "\n".join(file.read_text() for file in (REPO / "sidecar").rglob("*.py"))
    reasons = set(re.findall(r"(?:Refused|\.refuse)\(\s*\"(\w+)\"", source))
    reasons |= set(re.findall(r"(?:on_refused|refusals\.add)\([^\"]*\"\w+\", \"(\w+)\"", source))
    assert len(reasons) > 15
    assert reasons <= set(_quoted("Refusals"))
