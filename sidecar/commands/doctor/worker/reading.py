"""A worker's arguments as vLLM's own parser reads them, where there is one."""

from connectors.errors import ConnectorError
from connectors.versions import Installed
from connectors.vllm_options import NotChecked, hidden, written_out
from sidecar.commands.doctor.finding import Finding, problem, warning
from sidecar.commands.doctor.worker.invocation import Invocation, of_arguments


def as_vllm_reads_it(worker: Invocation, installed: Installed) -> tuple[Invocation, Finding | None]:
    """The worker with all its options, and what keeps them from being read or run."""
    try:
        if not installed["vllm"]:
            raise NotChecked("vLLM, whose parser reads them, is not in this environment")
        arguments = written_out(worker.arguments, worker.program == "vllm")
    except NotChecked as reason:
        return worker, _not_checked(str(reason)) if hidden(worker.arguments) else None
    except ConnectorError as refused:
        return worker, problem(
            "arguments",
            str(refused),
            "the worker does not start with them",
            "vllm serve --help=all lists what it takes",
        )
    return of_arguments(worker.program, arguments, worker.environ), None


def _not_checked(reason: str) -> Finding:
    return warning(
        "arguments",
        "not checked: what --config and dotted options say",
        reason,
        "install kv-sidecar in the worker's environment, and run its doctor there",
    )
