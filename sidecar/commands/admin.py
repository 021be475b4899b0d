"""Talking to a running server's admin port, as a command does: JSON in, one line of reason out."""

import errno
import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

URL = "http://127.0.0.1:8080"
# What `reason` says where nothing listens.
REFUSED = os.strerror(errno.ECONNREFUSED)
# Whatever `http_proxy` says: no proxy knows a server of this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, path: str, timeout: float) -> Any:
    """The JSON at `url` + `path`. Raises OSError or ValueError; `reason` says it in words."""
    return json.loads(get_text(url, path, timeout))


def get_text(url: str, path: str, timeout: float) -> str:
    """The text there. Raises the same."""
    return _text(urllib.request.Request(url.rstrip("/") + path), timeout)


def send(url: str, path: str, method: str, body: Any, timeout: float) -> Any:
    """The JSON that answers a request with `body` as JSON. Raises the same."""
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(url.rstrip("/") + path, data, headers, method=method)
    return json.loads(_text(request, timeout))


def _text(request: urllib.request.Request, timeout: float) -> str:
    try:
        with _DIRECT.open(request, timeout=timeout) as reply:
            text: str = reply.read().decode()
            return text
    except HTTPException as error:  # neither of the two: a bad URL, an answer that breaks off
        raise ValueError(str(error) or type(error).__name__) from None


def reason(error: Exception) -> str:
    """What to tell the operator: the server's own words where it answered with some."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            body = json.load(error)
            told = (body.get(key) for key in ("reason", "error", "detail"))
            return str(next(filter(None, told), error))
        except (OSError, HTTPException, ValueError, AttributeError):
            return str(error)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
