"""Removing what a round trip has stored, over the admin port."""

import time
from typing import Any

from sidecar.commands import admin
from sidecar.commands.doctor.live.client import LiveFailed
from sidecar.commands.doctor.live.prompt import Prompt

_SECONDS = 5.0


def remove(url: str, prompt: Prompt) -> None:
    """Delete the object from L1, then from each L2 adapter.

    In this order: what L2 is writing holds its place in L1, so once that is gone nothing is
    written any more. Raises LiveFailed if it stays.
    """
    deadline = time.monotonic() + _SECONDS
    try:
        while _delete(url, prompt, tier="l1")["skipped"]:
            if time.monotonic() > deadline:
                raise LiveFailed("the object is leased or pinned")
            time.sleep(0.02)
        status = admin.get(url, "/status", _SECONDS)
        for adapter in status["storage_manager"]["l2_adapters"]:
            _delete(url, prompt, tier="l2", adapter=adapter["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LiveFailed(admin.reason(error)) from None


def _delete(url: str, prompt: Prompt, **where: str) -> Any:
    body = {"keys": [prompt.object_key()], **where}
    return admin.send(url, "/cache/objects", "DELETE", body, _SECONDS)
