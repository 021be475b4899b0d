"""Types of options: texts to values, or argparse's error that names the text."""

import argparse
import math
from typing import cast, get_args

from connectors.versions import Package, release


def port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def gib(text: str) -> float:
    """A size in GiB."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in GiB")
    return size


def package_version(text: str) -> tuple[Package, str]:
    """`vllm==0.26.0` as an option's value."""
    name, _, version = text.partition("==")
    if name not in get_args(Package) or not release(version):
        known = ", ".join(get_args(Package))
        raise argparse.ArgumentTypeError(f"{text!r} is not PACKAGE==VERSION of one of {known}")
    return cast(Package, name), version
