"""The admin port: health, state, metrics and cache control over HTTP."""

from sidecar.admin.server import AdminServer

__all__ = ["AdminServer"]
