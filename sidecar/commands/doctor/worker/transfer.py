"""`--kv-transfer-config`: which connectors, and what they do when something fails."""

from connectors import lmcache_mp, lmcache_v1, nixl, offloading
from connectors.versions import meets
from sidecar.commands.doctor.finding import Finding, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker.invocation import Invocation, extra

_NAME = "--kv-transfer-config"
_POLICY, _MODULE = "kv_load_failure_policy", "kv_connector_module_path"
_OURS = "kv-sidecar connector --role ROLE prints a config that fits"
_MODULE_PATH = str(lmcache_mp.kv_transfer_config(lmcache_mp.CacheServer())[_MODULE])


def readable(worker: Invocation, around: Surroundings) -> Finding | None:
    """A config that is none."""
    if not worker.unreadable:
        return None
    return problem(_NAME, worker.unreadable, "the worker does not start with it", _OURS)


def uses_the_sidecar(worker: Invocation, around: Surroundings) -> Finding | None:
    """A worker that never asks the sidecar. A decode worker may do without."""
    if worker.unreadable or worker.unread or worker.client or worker.native:
        return None
    if worker.value("--disaggregation-mode") == "decode":
        return None
    inside = [name for name in (lmcache_v1.NAME, offloading.NAME) if worker.connector(name)]
    what = f"{inside[0]} keeps its cache inside the worker" if inside else f"no {lmcache_mp.NAME}"
    return warning(_NAME, what, "the worker does not use the sidecar", _OURS)


def module_path(worker: Invocation, around: Surroundings) -> Finding | None:
    """The client that vLLM takes where it is not told: perhaps one of its own."""
    found = worker.client and worker.client.get(_MODULE)
    if worker.client is None or found == _MODULE_PATH:
        return None
    do = f'"{_MODULE}": "{_MODULE_PATH}"'
    if found:
        return problem(_NAME, f"{_MODULE} is {found!r}", "the sidecar's client is not there", do)
    why = "where LMCache cannot be imported, vLLM silently takes a client that does not fit"
    if around.installed["vllm"] and not meets(around.installed["vllm"], "0.22.0"):
        return problem(_NAME, f"no {_MODULE}", "this vLLM takes a client that does not fit", do)
    return warning(_NAME, f"no {_MODULE}", why, do)


def failure_policy(worker: Invocation, around: Surroundings) -> Finding | None:
    """What becomes of a request whose KV does not arrive; vLLM reads it at the top alone."""
    if worker.config is None or worker.config.get(_POLICY) == "recompute":
        return None
    below = [extra(worker.config), *worker.connectors]
    do = f'"{_POLICY}": "recompute" beside the outermost "kv_connector"'
    why = "vLLM's default, fail, ends each request whose KV cannot be loaded"
    if _POLICY not in worker.config and any(_POLICY in config for config in below):
        what = f"{_POLICY} stands where vLLM does not read it"
        return problem(_NAME, what, why, do)
    return warning(_NAME, f"{_POLICY} is not recompute", why, do)


def role_of_the_client(worker: Invocation, around: Surroundings) -> Finding | None:
    """The sidecar is written and read by every worker that has it."""
    role = worker.client and worker.client.get("kv_role")
    if worker.client is None or role == "kv_both":
        return None
    return warning(
        _NAME,
        f"{lmcache_mp.NAME} has kv_role {role!r}",
        "it both stores in the sidecar and loads from it",
        '"kv_role": "kv_both"',
    )


def role_of_nixl(worker: Invocation, around: Surroundings) -> Finding | None:
    """The role that newer vLLM does not want for a transfer."""
    child = worker.connector(nixl.NAME)
    if child is None or child.get("kv_role") != "kv_both":
        return None
    if not meets(around.installed["vllm"] or "0.23.0", "0.23.0"):
        return None
    return warning(
        _NAME,
        f"{nixl.NAME} has kv_role 'kv_both'",
        "deprecated since vLLM 0.23.0",
        "kv_producer for prefill, kv_consumer for decode",
    )


def order_of_connectors(worker: Invocation, around: Surroundings) -> Finding | None:
    """A MultiConnector loads from the first child that has something."""
    names = [child["kv_connector"] for child in worker.connectors]
    ours = (lmcache_mp.NAME, offloading.NAME if worker.native else None)
    late = next((name for name in names[1:] if name in ours), None)
    if late is None:
        return None
    return warning(
        _NAME,
        f"{names[0]} comes before {late}",
        "a MultiConnector loads from the first that has something",
        f"put {late} first",
    )


CHECKS = (
    readable,
    uses_the_sidecar,
    module_path,
    failure_policy,
    role_of_the_client,
    role_of_nixl,
    order_of_connectors,
)
