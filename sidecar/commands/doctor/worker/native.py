"""Workers that keep their KV by vLLM's own OffloadingConnector, with the sidecar behind it."""

from connectors import offloading
from connectors.native.settings import URL, Settings
from sidecar.addresses import in_url
from sidecar.commands.doctor.finding import Finding, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker.addresses import meets_place
from sidecar.commands.doctor.worker.invocation import EVENTS, Invocation, extra

_OURS = "kv-sidecar connector --client native --role ROLE prints a config that fits"


def module(worker: Invocation, around: Surroundings) -> Finding | None:
    """Ours by name, which vLLM looks for elsewhere unless it is told."""
    config = worker.native
    if config is None or extra(config).get("spec_module_path") == offloading.MODULE:
        return None
    why = f"vLLM finds no {offloading.SPEC} there, and the worker does not start"
    found = extra(config).get("spec_module_path")
    return problem("spec_module_path", f"it is {found!r}", why, _OURS)


def settings(worker: Invocation, around: Surroundings) -> Finding | None:
    """What the worker refuses at its start, and whether it looks where the sidecar listens."""
    if worker.native is None:
        return None
    try:
        url = Settings.read(extra(worker.native)).url
    except ValueError as error:
        return problem("kv_sidecar", str(error), "the worker does not start with it", _OURS)
    if meets_place(url, around.config.host, around.config.port):
        return None
    listens = f"{in_url(around.config.host)}:{around.config.port}"
    return problem(
        URL,
        f"the worker connects to {url}, the sidecar listens on {listens}",
        "it goes on without the sidecar",
        "the sidecar's --host and --port (give those to doctor, or --config)",
    )


def events(worker: Invocation, around: Surroundings) -> Finding | None:
    """vLLM by itself publishes events that no router reads."""
    config = worker.native
    if config is None or not worker.publishes_events:
        return None
    describes = extra(config).get(offloading.DESCRIBING) is True
    if describes and config.get("kv_connector_module_path") == offloading.CONNECTOR_MODULE:
        return None
    return warning(
        EVENTS,
        f"without {offloading.DESCRIBING} and kv_connector_module_path",
        "routers see what the GPU holds, and nothing of the sidecar",
        _OURS,
    )


CHECKS = (module, settings, events)
