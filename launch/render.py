"""A stack as files: supervisord's configuration and a script for each program."""

import resource
import shlex
from collections.abc import Iterable
from pathlib import Path
from string import Template

from launch.plan import Program, Stack, waiting
from launch.run_directory import RunDirectory

_TEMPLATES = Path(__file__).parent / "templates"
# Supervisor's own defaults: it raises its limits to these, and does not start where it may not.
_DESCRIPTORS, _PROCESSES = 1024, 200


def files(stack: Stack, directory: RunDirectory) -> dict[Path, str]:
    """What to write, by path."""
    found = {directory.configuration: _configuration(stack, directory)}
    for program in stack.programs:
        found[directory.script(program.name)] = _script(stack, program, directory)
    return found


def _configuration(stack: Stack, directory: RunDirectory) -> str:
    main = _fill(
        "supervisord.conf",
        stack=stack.name,
        socket=directory.socket,
        logs=directory.logs,
        directory=directory.path,
        descriptors=_as_allowed(resource.RLIMIT_NOFILE, _DESCRIPTORS),
        processes=_as_allowed(resource.RLIMIT_NPROC, _PROCESSES),
    )
    programs = [_section(program, directory) for program in stack.programs]
    return "".join([main, *programs, *_groups(stack.programs)])


def _as_allowed(limit: int, wanted: int) -> int:
    """`wanted`, or what may be had at the most."""
    most = resource.getrlimit(limit)[1]
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)


def _section(program: Program, directory: RunDirectory) -> str:
    return _fill(
        "program.conf",
        name=program.name,
        command=shlex.join(["/bin/sh", str(directory.script(program.name))]),
        stop_seconds=program.stop_seconds,
        log=directory.log(program.name),
    )


def _groups(programs: Iterable[Program]) -> list[str]:
    """Supervisor stops one group after the other, and all of a group at once."""
    members: dict[int, list[str]] = {}
    for program in programs:
        members.setdefault(program.priority, []).append(program.name)
    return [
        f"\n[group:{group_name(priority)}]\nprograms={','.join(names)}\npriority={priority}\n"
        for priority, names in members.items()
    ]


def group_name(priority: int) -> str:
    return f"priority-{priority}"


def _script(stack: Stack, program: Program, directory: RunDirectory) -> str:
    command = waiting(program, str(directory.socket), stack.start_timeout)
    lines = [f"unset {name}" for name in program.unset]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in program.environment.items()]
    return _fill(
        "program.sh",
        name=program.name,
        stack=stack.name,
        environment="\n".join(lines),
        command=shlex.join(command),
    )


def _fill(template: str, **values: object) -> str:
    return Template((_TEMPLATES / template).read_text()).substitute(values)
