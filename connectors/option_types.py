"""Types of options: texts to values, or argparse's error that names the text."""

import argparse
import math


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
