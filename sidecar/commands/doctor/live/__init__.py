"""A store and a retrieve against the running server, in each mode it allows; nothing stays."""

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sidecar.commands.doctor.finding import Finding, ok, problem, warning
from sidecar.commands.doctor.live import cleanup, engine_driven_mode, handle_mode
from sidecar.commands.doctor.live.client import Client, LiveFailed
from sidecar.commands.doctor.live.prompt import Prompt, new_prompt
from sidecar.commands.doctor.surroundings import Surroundings, wire_url

_SECONDS = 10.0
_CONNECT_SECONDS = 2.0
_LOG = "look at the server's log and at kv-sidecar status"


def check(around: Surroundings, admin_url: str) -> Iterator[Finding]:
    """One finding for each mode, or one that says that nobody is there."""
    url = wire_url(around.config)
    reason = _nobody(url)
    if reason:
        yield warning(
            "live", f"no server at {url}: {reason}", "store and retrieve were not tried", "start it"
        )
        return
    modes: dict[str, Callable[[Client, Prompt], None]] = {
        "lmcache_driven": partial(handle_mode.round_trip, null_block=_null_block(around)),
        "engine_driven": engine_driven_mode.round_trip,
    }
    for mode, round_trip in modes.items():
        if around.transfer_mode in ("auto", mode):
            yield from try_mode(url, admin_url, mode, round_trip)


def try_mode(
    url: str, admin_url: str, mode: str, round_trip: Callable[[Client, Prompt], None]
) -> Iterator[Finding]:
    """Whether bytes come back as they were stored, and whether they could be removed."""
    client = Client(url, _SECONDS)
    prompt = None
    try:
        prompt = new_prompt(client)
        round_trip(client, prompt)
        yield ok(f"live {mode}", f"{len(prompt.tokens)} tokens stored, found, retrieved, compared")
    except LiveFailed as error:
        yield problem(f"live {mode}", str(error), "workers get no cache from this server", _LOG)
    except OSError as error:
        what = f"/dev/shm: {error.strerror}"
        yield problem(f"live {mode}", what, "worker and server must share it", _LOG)
    finally:
        client.close()
    if prompt:
        yield from _remove(admin_url, mode, prompt)


def _remove(admin_url: str, mode: str, prompt: Prompt) -> Iterator[Finding]:
    try:
        cleanup.remove(admin_url, prompt)
    except LiveFailed as error:
        yield warning(
            f"live {mode}",
            f"what it stored could not be removed: {error}",
            "it stays until it is evicted",
            f"--http-host and --http-port of the server (tried {admin_url})",
        )


def _nobody(url: str) -> str:
    """Why nobody answers a connection; empty if somebody does."""
    try:
        if url.startswith("ipc://"):
            _connect_unix(Path(url.removeprefix("ipc://")))
        else:
            host, _, port = url.removeprefix("tcp://").rpartition(":")
            address = (host.strip("[]"), int(port))
            socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _connect_unix(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        probe.connect(str(path))


def _null_block(around: Surroundings) -> int:
    """The block that the server takes for absent data."""
    return int(around.server["mp"]["null_block_id"]) if around.server else 0
