"""The client's own settings, `lmcache.mp.*`: where the sidecar is and how they work together."""

import difflib
from urllib.parse import urlsplit

from connectors import lmcache_mp
from connectors.lmcache_mp import NAME, lacks_brackets
from connectors.versions import meets
from sidecar.addresses import in_url
from sidecar.commands.doctor.finding import Finding, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker.invocation import Invocation, extra

_PREFIX = "lmcache.mp."
# What lmcache 0.5.6 reads: lmcache_mp_connector.py, mp_server_launcher.py, and
# ExtraConfigDefault in vllm_multi_process_adapter.py.
_KEYS = (
    "server_urls", "host", "port", "mq_timeout", "heartbeat_interval",
    "nonblocking_lookup_status", "mp_transfer_mode", "isolated_ipc", "use_vmm_api",
    "hash_algorithm", "lazy_offload", "eager_prefetch", "save_decode_cache",
    "transfer_intermediate_tensors", "autostart", "autostart.server_args",
    "autostart.wait_timeout",
)  # fmt: skip
_DEFAULT_HOST, _DEFAULT_PORT = "tcp://localhost", 5555
_DEFAULT_TIMEOUT = _STEP_TIMEOUT = 300.0  # seconds; the second is vLLM's, for one step


def right_place(worker: Invocation, around: Surroundings) -> Finding | None:
    """Settings that nobody reads: beside `kv_connector`, or in the MultiConnector."""
    if worker.config is None:
        return None
    places = [worker.config, *worker.connectors]
    if worker.client is None or "connectors" in extra(worker.config):
        places.append(extra(worker.config))
    lost = sorted({key for place in places for key in place if str(key).startswith(_PREFIX)})
    if not lost:
        return None
    return problem(
        lost[0],
        "it stands where the client does not read it",
        "the client takes its default instead",
        f"put it in the kv_connector_extra_config of {NAME}",
    )


def known(worker: Invocation, around: Surroundings) -> Finding | None:
    """A misspelt key is ignored."""
    for key in map(str, worker.client_extra):
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) in _KEYS:
            continue
        near = difflib.get_close_matches(key, [_PREFIX + name for name in _KEYS], n=1)
        do = f"write {near[0]}" if near else f"its keys begin with {_PREFIX}"
        return warning(key, "the client of lmcache 0.5.6 has no such key", "it is ignored", do)
    return None


def address(worker: Invocation, around: Surroundings) -> Finding | None:
    """Whether the worker looks where the sidecar listens."""
    if worker.client is None:
        return None
    urls = _urls(worker)
    if any(url.startswith("grpc") for url in urls):
        return problem("address", urls[0], "the sidecar speaks ZMQ alone", "tcp:// or ipc://")
    for url in urls:
        if lacks_brackets(url):
            why = "the client takes its last part for a port"
            return problem("address", url, why, "an IPv6 address stands in brackets")
        if url.startswith("tcp://["):
            why = "lmcache's client connects by IPv4 only, and waits"
            return problem("address", url, why, "an IPv4 address or ipc://; serve --host *")
    host, port = around.config.host, around.config.port
    if any(meets_place(url, host, port) for url in urls):
        return None
    listens = f"{in_url(host)}:{port}"
    return problem(
        "address",
        f"the worker connects to {', '.join(urls)}, the sidecar listens on {listens}",
        "the worker waits for a chunk size at its start, and ends",
        "lmcache.mp.host and lmcache.mp.port as the sidecar's --host and --port "
        "(give those to doctor, or --config)",
    )


def transfer_mode(worker: Invocation, around: Surroundings) -> Finding | None:
    """Who copies must be allowed on both sides."""
    if worker.client is None:
        return None
    wanted = worker.transfer_mode
    if "auto" in (wanted, around.transfer_mode) or wanted == around.transfer_mode:
        return None
    return problem(
        "transfer mode",
        f"the worker wants {wanted}, the sidecar allows {around.transfer_mode}",
        "the sidecar refuses the registration, and nothing is cached",
        "--supported-transfer-mode auto at the sidecar",
    )


def name_of_the_mode(worker: Invocation, around: Surroundings) -> Finding | None:
    """0.4.7 has other names for the modes than all after it, and each ends over the other's."""
    said, have = worker.told_transfer_mode, around.installed["lmcache"]
    if worker.client is None or said == "auto" or not meets(have, "0.4.7"):
        return None
    names = lmcache_mp.MODES_OF_0_4_7
    right = [*names] if meets(have, "0.5.0") else [*names.values()]
    if said in right:
        return None
    return problem(
        lmcache_mp.TRANSFER_MODE,
        f"lmcache {have} has no mode {said}",
        "its worker ends at its start",
        f"one of {', '.join(right)}",
    )


def virtual_memory(worker: Invocation, around: Surroundings) -> Finding | None:
    """Handles that CUDA IPC cannot open."""
    if not worker.client_extra.get(f"{_PREFIX}use_vmm_api"):
        return None
    return problem(
        f"{_PREFIX}use_vmm_api",
        "it is on",
        "the sidecar refuses virtual CUDA memory: it maps the KV cache by CUDA IPC",
        "leave it out",
    )


def timeout(worker: Invocation, around: Surroundings) -> Finding | None:
    """A worker may wait twice in one step for a sidecar that died, and vLLM ends slow steps."""
    if worker.client is None:
        return None
    seconds = worker.client_extra.get(f"{_PREFIX}mq_timeout", _DEFAULT_TIMEOUT)
    if not isinstance(seconds, int | float) or 2 * seconds < _STEP_TIMEOUT:
        return None
    return warning(
        f"{_PREFIX}mq_timeout",
        f"{seconds:g} s",
        f"a step may wait for it twice if the sidecar dies, and vLLM ends after {_STEP_TIMEOUT:g} "
        "s in one step",
        f'"{_PREFIX}mq_timeout": 60',
    )


def _urls(worker: Invocation) -> list[str]:
    settings = worker.client_extra
    given = settings.get(f"{_PREFIX}server_urls")
    if given:
        return list(map(str, given)) if isinstance(given, list) else str(given).split(",")
    host = settings.get(f"{_PREFIX}host", _DEFAULT_HOST)
    return [f"{host}:{settings.get(f'{_PREFIX}port', _DEFAULT_PORT)}"]


def meets_place(url: str, host: str, port: int) -> bool:
    """Whether `url` leads to who listens there. Hosts have several names: of TCP only the port."""
    if host.startswith("ipc://") or url.startswith("ipc://"):
        return url.strip() == f"{host}:{port}"
    netloc = urlsplit(url if "://" in url else f"tcp://{url}").netloc
    return netloc.rpartition(":")[2] == str(port)


CHECKS = (right_place, known, address, transfer_mode, name_of_the_mode, virtual_memory, timeout)
