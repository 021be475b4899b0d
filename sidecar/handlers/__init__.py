"""Protocol operations -> calls on cache and engines: the only place where wire and cache meet."""

from sidecar.handlers.service import Service

__all__ = ["Service"]
