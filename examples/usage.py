"""How the examples take their arguments: wrong usage is one line, and exit code 2."""

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeVar

Reading = TypeVar("Reading")


class Parser(argparse.ArgumentParser):
    """Shows a module's docstring as its help; every example wants the sidecar's admin port."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument(
            "--sidecar-url",
            default="http://127.0.0.1:8080",
            help="the sidecar's admin port (default %(default)s)",
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")

    def check(self, read: Callable[[str], Reading], url: str) -> Reading:
        """The first reading of `url`; wrong usage where there is nothing to read."""
        try:
            return read(url)
        except (OSError, ValueError) as error:
            self.error(f"{url}: {getattr(error, 'reason', error)}")
