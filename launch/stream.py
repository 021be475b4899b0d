"""The output of all programs as one stream."""

from collections.abc import Sequence

from launch.plan import Program
from launch.run_directory import RunDirectory
from launch.tail import Tail
from launch.terminal import Terminal


class Stream:
    """Shows what the programs have written to their logs since the launcher began."""

    def __init__(
        self, programs: Sequence[Program], directory: RunDirectory, terminal: Terminal
    ) -> None:
        self._terminal = terminal
        self._tails = [(program.name, Tail(directory.log(program.name))) for program in programs]
        for _, tail in self._tails:
            tail.skip()

    def show(self) -> None:
        if self._terminal.is_behind():
            return  # nothing is lost: it is in the logs until then
        for name, tail in self._tails:
            for line in tail.lines():
                self._terminal.line(name, line)
