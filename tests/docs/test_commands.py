"""Every command of the pages is run, by bash and as it stands, in a sandbox."""

import re
import shutil
from pathlib import Path

import pytest

from sidecar.config import load
from tests.docs import calls
from tests.docs.pages import PAGES, REPO, blocks
from tests.docs.sandbox import STAND_INS, Sandbox

# What is no block of commands says so: ```text is a picture or output.
_NO_COMMANDS = ("json", "text", "yaml")


def _commands(text: str) -> str:
    """A block's commands; where some lines begin with `$ `, the others are output."""
    typed = re.findall(r"^\$ (.+)$", text, flags=re.MULTILINE)
    return "\n".join(typed) + "\n" if typed else text


BLOCKS = [
    pytest.param(_commands(block.text), id=f"{page.parent.name}/{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page))
    if block.language not in _NO_COMMANDS
]


@pytest.mark.parametrize("text", BLOCKS)
def test_commands_do_what_they_should(text: str, sandbox: Sandbox) -> None:
    if re.search(r"\bcurl ", text) and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    outcome = sandbox.run(_with_a_server(text))
    assert outcome.code == 0, outcome.output
    for call in outcome.calls:
        calls.check(call)


def _with_a_server(text: str) -> str:
    """Blocks that talk to a server are about one that runs already, if they start none."""
    talks = re.search(r"kv-sidecar (status|wait)|127\.0\.0\.1:8080", text)
    starts = re.search(r"^kv-sidecar serve (?!.*--print-config)", text, re.MULTILINE)
    server = "kv-sidecar serve --l1-size-gb 1\n"
    return server + text if talks and not starts else text


def test_every_stand_in_is_checked_and_run_somewhere() -> None:
    assert set(STAND_INS) == set(calls.PROGRAMS)
    for program in calls.PROGRAMS.values():
        path, _, name = program.run_by.partition("::")
        assert not name or f"def {name}(" in (REPO / path).read_text(), program.run_by


def test_a_wrong_command_is_found(sandbox: Sandbox) -> None:
    assert sandbox.run("kv-sidecar stauts\n").code == 2
    assert sandbox.run("no-such-program --flag\n").code == 127
    with pytest.raises(AssertionError):
        calls.check(["docker", "build", "-t", "x", "--build-arg", "BSAE=y", "."])


def test_the_configuration_of_l2_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    (text,) = [b.text for b in blocks(REPO / "docs" / "l2.md") if b.language == "yaml"]
    file.write_text(text)
    adapters = load(["--config", str(file)], {}).config.l2_adapter
    assert [spec.settings.type for spec in adapters] == ["fs", "s3"]
