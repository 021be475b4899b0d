"""The sidecar and Dynamo's frontend."""

import os
from dataclasses import dataclass

from launch.errors import UsageError
from launch.options import Options
from launch.plan import FRONTEND, SIDECAR, Check, Program, own_command
from launch.ports import Ports
from sidecar.addresses import local
from sidecar.config import Config, load

_USUAL_L1_GB = 4.0
# Any of these may say how large the L1 is.
_SIZE_VARIABLES = {"KV_SIDECAR_L1_SIZE_GB", "KV_SIDECAR_CONFIG"}
# Dynamo's health ports listen on all addresses by default.
_DYNAMO_LOOPBACK = {
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
    "DYN_SYSTEM_HOST": "127.0.0.1",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all programs of one stack have in common; `gpus` has an entry for each worker."""

    options: Options
    model: str
    served_name: str
    own_model: bool
    on_cpu: bool
    gpus: tuple[str, ...]
    python: str
    discovery: dict[str, str]


def discovery(options: Options, directory: str) -> dict[str, str]:
    """How Dynamo's programs find each other: files of this stack, or etcd and NATS."""
    found = {**_DYNAMO_LOOPBACK, "DYN_EVENT_PLANE": "zmq"}
    if options.etcd:
        found |= {"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": options.etcd}
    else:
        found |= {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": directory}
    if options.nats:
        found |= {"DYN_EVENT_PLANE": "nats", "NATS_SERVER": options.nats}
    return found


def sidecar(options: Options, ports: Ports) -> Program:
    """Raises ConfigError or UsageError for settings that it would not start with."""
    port = ports.take(options.sidecar_port, "--sidecar-port")
    http_port = ports.take(options.sidecar_http_port, "--sidecar-http-port")
    size = options.l1_size_gb
    if size is None and not (options.config or _SIZE_VARIABLES & set(os.environ)):
        size = _USUAL_L1_GB
    arguments = ["--config", options.config] if options.config else []
    arguments += ["--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--http-host", "127.0.0.1", "--http-port", str(http_port)]
    arguments += ["--l1-size-gb", f"{size:g}"] if size is not None else []
    for adapter in options.l2_adapter:
        arguments += ["--l2-adapter", adapter]
    arguments += options.sidecar_args
    _check(load(arguments, os.environ).config, port, http_port)
    return Program(
        name="sidecar",
        argv=own_command("serve", arguments),
        priority=SIDECAR,
        check=Check(f"http://127.0.0.1:{http_port}", "/healthcheck"),
        ports={"mp": port, "http": http_port},
    )


def _check(config: Config, port: int, http_port: int) -> None:
    """Raises UsageError where the sidecar would listen elsewhere than the others look for it."""
    if (config.port, config.http_port) != (port, http_port):
        raise UsageError("--sidecar-args has a port: use --sidecar-port and --sidecar-http-port")


def frontend(setting: Setting, ports: Ports) -> Program:
    options = setting.options
    port = ports.take(options.http_port, "--http-port")
    mode = ["--router-mode", options.router_mode] if options.router_mode else []
    return Program(
        name="frontend",
        argv=(
            *(setting.python, "-m", "dynamo.frontend"),
            *("--http-host", options.host, "--http-port", str(port)),
            *mode,
            *options.frontend_args,
        ),
        priority=FRONTEND,
        check=Check(base(options.host, port), model=setting.served_name),
        ports={"http": port},
        environment=setting.discovery,
    )


def base(host: str, port: int) -> str:
    """The URL of a server that listens on `host`, for a client on this machine."""
    return f"http://{local(host)}:{port}"
