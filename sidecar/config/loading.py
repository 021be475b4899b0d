"""Flags, environment, file and defaults into one validated ``Config``."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.config import environment, flags, yaml_file
from sidecar.config.options import OPTIONS, Config
from sidecar.config.values import UNIX_PATH_LIMIT, ConfigError


@dataclass(frozen=True)
class Setting:
    """The text given for one option, and where: as shown in messages and by --print-config."""

    text: str
    label: str
    source: str


@dataclass(frozen=True)
class Loaded:
    """A valid configuration, the origin of each value, and lines to show as warnings."""

    config: Config
    sources: dict[str, str]
    warnings: list[str]
    print_config: bool


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """The configuration that ``serve`` runs with: flag before environment before file.

    Raises:
        ConfigError: one line that names the flag, key or variable and says what is wrong.
        SystemExit: after printing the help text, where that was asked for.
    """
    return resolve(flags.parse(arguments), environ)


def resolve(
    given: flags.Given, environ: Mapping[str, str], otherwise: Mapping[str, str] | None = None
) -> Loaded:
    """The same for a command line that has been read; `otherwise` are defaults, as text.

    Raises ConfigError.
    """
    warnings = list(given.warnings)
    settings: dict[str, Setting] = {}
    path = given.config_file or environ.get(environment.CONFIG_FILE)
    if path:
        for name, entry in yaml_file.read(Path(path)).items():
            if entry.text is not None:
                settings[name] = Setting(entry.text, f"{entry.place}: {entry.key}", entry.place)
    found = environment.read(environ)
    warnings += found.warnings
    for name, (variable, text) in found.values.items():
        settings[name] = Setting(text, variable, f"env {variable}")
    for name, (spelling, text) in given.values.items():
        settings[name] = Setting(text, spelling, "flag")
    defaults = {name: Setting(text, name, "default") for name, text in (otherwise or {}).items()}
    settings = defaults | settings
    config = _build(settings)
    _check(config)
    warnings += [f"--l2-adapter {line}" for spec in config.l2_adapter for line in spec.warnings]
    sources = {name: settings[name].source if name in settings else "default" for name in OPTIONS}
    return Loaded(config, sources, warnings, given.print_config)


def _build(settings: Mapping[str, Setting]) -> Config:
    values: dict[str, Any] = {}
    for name, setting in settings.items():
        try:
            values[name] = OPTIONS[name].parse(setting.text)
        except ValueError as error:
            # A key of an adapter's JSON may hold a line break, and then the reason does.
            reason = str(error).replace("\n", " ")
            raise ConfigError(f"{setting.label}: {reason}") from None
    if "l1_size_gb" not in values:
        raise ConfigError("--l1-size-gb is required: how many GiB of memory to cache in")
    return Config(**values)


def _check(config: Config) -> None:
    """What no single value can tell."""
    reap = config.worker_reap_timeout_seconds
    if config.worker_registration_grace_seconds < reap:
        raise ConfigError(
            "--worker-registration-grace-seconds must not be less than "
            f"--worker-reap-timeout-seconds ({reap:g})"
        )
    if config.l1_keep_seconds and not config.shm_name:
        raise ConfigError("--l1-keep-seconds needs --shm-name, by which the next server finds L1")
    if config.host.startswith("ipc://"):
        path = f"{config.host.removeprefix('ipc://')}:{config.port}"
        if len(path.encode()) > UNIX_PATH_LIMIT:
            raise ConfigError(
                f"--host: the socket path {path} is longer than {UNIX_PATH_LIMIT} bytes"
            )
    _check_quotas(config)
    if config.kv_events_replay_endpoint and not config.kv_events_endpoint:
        raise ConfigError("--kv-events-replay-endpoint needs --kv-events-endpoint")
    if config.kv_events_endpoint and not config.kv_event_log_size:
        raise ConfigError("--kv-events-endpoint contradicts --kv-event-log-size 0")
    if config.disable_metrics and (config.prometheus_port or config.otlp_endpoint):
        raise ConfigError("--disable-metrics contradicts --prometheus-port and --otlp-endpoint")
    if config.trace_sample_ratio and not config.otlp_endpoint:
        raise ConfigError("--trace-sample-ratio needs --otlp-endpoint, where the traces go")
    if config.otlp_endpoint and not _has_otlp_exporter():
        raise ConfigError("--otlp-endpoint needs the OTLP exporter: install kv-sidecar[otlp]")


def _check_quotas(config: Config) -> None:
    isolates = config.eviction_policy.startswith("Isolated")
    adapters = [spec.settings for spec in config.l2_adapter]
    isolating = [each for each in adapters if each.eviction.eviction_policy == "IsolatedLRU"]
    for quota in config.quotas:
        if not ((isolates and quota.l1) or (isolating and quota.l2)):
            raise ConfigError(
                "--quotas needs --eviction-policy IsolatedLRU or IsolatedARC, or an L2 adapter "
                'with "eviction": {"eviction_policy": "IsolatedLRU"}'
            )
        if quota.l2 and quota.l2.share is not None:
            for each in isolating:
                if each.capacity_bytes is None:
                    raise ConfigError(
                        f"--quotas: a share of L2 {each.type} needs its max_capacity_gb"
                    )


def _has_otlp_exporter() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:
        return False
