"""The cases of L2: each starts servers of its own, on a directory of its own."""

from bench.l2.cases import measure
from bench.l2.setting import Plan

__all__ = ["Plan", "measure"]
