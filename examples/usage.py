"""How the examples take their arguments: wrong usage is one line, and exit code 2."""

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeVar

Reading = TypeVar("Reading")


class Parser(argparse.ArgumentParser):
    """Shows a module's docstring as its help."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_sidecar_url(self) -> None:
        url = "http://127.0.0.1:8080"
        self.add_argument("--sidecar-url", default=url, help="its admin port (%(default)s)")

    def add_count(self, name: str, default: int, what: str) -> None:
        """An option for a number of at least 1."""
        what = f"{what} (%(default)s)"
        self.add_argument(name, type=positive, default=default, metavar="N", help=what)

    def check(self, read: Callable[[str], Reading], url: str) -> Reading:
        """The first reading of `url`; wrong usage where there is nothing to read."""
        try:
            return read(url)
        except (OSError, ValueError) as error:
            self.error(f"{url}: {getattr(error, 'reason', error)}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
