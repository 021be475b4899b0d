"""What a stack consists of, before anything of it runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

# Supervisor starts the lowest first and stops the highest first: users' requests end before the
# workers do, and these can still store their KV while they drain.
SIDECAR, WORKER, FRONTEND = 10, 20, 30


@dataclass(frozen=True)
class Check:
    """What says that the program at `base` is ready: 200 at `path`, or that it lists `model`."""

    base: str
    path: str = "/health"
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process of the stack.

    It waits for the program that it `needs`. `unset` are variables that it must not inherit.
    `ports` are for people to read.
    """

    name: str
    argv: tuple[str, ...]
    priority: int
    check: Check
    ports: dict[str, int]
    environment: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    needs: "Program | None" = None
    stop_seconds: int = 30


@dataclass(frozen=True, kw_only=True)
class Stack:
    """All programs in the order of their start, and where users find `model`.

    An `obstacle` is why it cannot run here.
    """

    name: str
    programs: tuple[Program, ...]
    url: str
    model: str
    start_timeout: float
    own_model: bool = False
    warnings: tuple[str, ...] = ()
    obstacle: str = ""


def waiting(program: Program, socket: str, timeout: float) -> tuple[str, ...]:
    """Its command, behind `kv-sidecar wait` where it needs another program."""
    if program.needs is None:
        return program.argv
    return (
        *own_command("wait"),
        *("--url", program.needs.check.base, "--timeout", f"{timeout:g}"),
        *("--supervisor", socket, "--program", program.needs.name),
        "--",
        *program.argv,
    )


def own_command(name: str, arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """`kv-sidecar NAME` of the interpreter that runs the launcher."""
    # -P: a directory called sidecar where the launcher was started is not ours.
    return (sys.executable, "-P", "-m", "sidecar", name, *arguments)
