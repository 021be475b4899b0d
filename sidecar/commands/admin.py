"""Talking to a running server's admin port, as a command does: JSON in, one line of reason out."""

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

URL = "http://127.0.0.1:8080"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, path: str, timeout: float) -> Any:
    """The JSON at `url` + `path`. Raises OSError or ValueError; `reason` says it in words."""
    with fetch(url.rstrip("/") + path, timeout) as reply:
        return json.load(reply)


def fetch(url: str, timeout: float) -> Any:
    """What answers at `url`, whatever `http_proxy` says: no proxy knows a server of this machine.

    Raises OSError, also for a status that is not 2xx.
    """
    return _DIRECT.open(url, timeout=timeout)


def reason(error: Exception) -> str:
    """What to tell the operator: the server's own words where it answered with some."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            body = json.load(error)
            return str(body.get("reason") or body.get("error") or error)
        except (OSError, HTTPException, ValueError, AttributeError):
            return str(error)
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
