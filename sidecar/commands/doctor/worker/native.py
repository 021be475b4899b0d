"""Workers that keep their KV by vLLM's own OffloadingConnector, with the sidecar behind it."""

from connectors import offloading
from connectors.native.settings import Settings
from sidecar.addresses import in_url
from sidecar.commands.doctor.finding import Finding, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker.addresses import meets_place
from sidecar.commands.doctor.worker.invocation import Invocation, extra

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
        "kv_sidecar.url",
        f"the worker connects to {url}, the sidecar listens on {listens}",
        "it goes on without the sidecar",
        "the sidecar's --host and --port (give those to doctor, or --config)",
    )


def block_hashes(worker: Invocation, around: Surroundings) -> Finding | None:
    """vLLM's block hashes begin with a random value where Python's hashes do."""
    seed = worker.environ.get("PYTHONHASHSEED", "random")
    if worker.native is None or seed.isdecimal():
        return None
    return problem(
        "block hashes",
        "PYTHONHASHSEED is not set",
        "vLLM's block hashes begin with a random value: no other worker, and no later one, finds "
        "what this one stores",
        "PYTHONHASHSEED=0 for every worker",
    )


def first_connector(worker: Invocation, around: Surroundings) -> Finding | None:
    """A MultiConnector loads from the first child that has something."""
    names = [child["kv_connector"] for child in worker.connectors]
    if worker.native is None or names[0] == offloading.NAME:
        return None
    return warning(
        "connectors",
        f"{names[0]} comes before {offloading.NAME}",
        "a MultiConnector loads from the first that has something",
        f"put {offloading.NAME} first",
    )


CHECKS = (module, settings, block_hashes, first_connector)
