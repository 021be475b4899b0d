"""Which of the running stacks `stop.sh` and `status.sh` mean."""

import os

from launch.errors import UsageError
from launch.options import Parser, name
from launch.run_directory import RunDirectory, known


def parser(script: str, description: str) -> Parser:
    """With `--name`, which is None where none was given."""
    found = Parser(prog=f"launch/{script}.sh", description=description, allow_abbrev=False)
    found.add_argument("--name", type=name, help="of the stack; default: the only one")
    found.set_defaults(name=os.environ.get("LAUNCH_NAME"))
    return found


def chosen(name: str | None) -> RunDirectory | None:
    """The stack called so, or the only one. Raises UsageError where there are several."""
    found = known()
    if name is not None:
        return next((directory for directory in found if directory.name == name), None)
    if len(found) > 1:
        names = ", ".join(directory.name for directory in found)
        raise UsageError(f"several stacks are running ({names}): choose one with --name")
    return found[0] if found else None
