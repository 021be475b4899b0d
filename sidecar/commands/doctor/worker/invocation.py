"""A worker's command line, taken apart."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from connectors import lmcache_mp, offloading
from connectors.arguments import by_name, is_off
from connectors.roles import Role
from connectors.versions import Need
from connectors.vllm_options import hidden
from connectors.worker import Program, needs
from sidecar.config import ConfigError

Config = Mapping[str, Any]
EVENTS = "--kv-events-config"


@dataclass(frozen=True)
class Invocation:
    """`options` by name (`--block-size`), with the tokens that follow; the last one counts.

    `arguments` are those of the program as they stand there. `environ` is this process's, changed
    as the command's own `env` says. `config` is its `--kv-transfer-config`, None without one;
    `unreadable` says why one that was given is not. `unread`: there are more options than these,
    in a file or as parts of others.
    """

    program: Program
    arguments: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    environ: Mapping[str, str]
    config: Config | None = None
    unreadable: str = ""
    unread: bool = False

    @property
    def model(self) -> str:
        """By name, or by place."""
        first = self.arguments[0] if self.arguments else ""
        return self.value("--model") or ("" if first.startswith("-") else first)

    @property
    def transfer_mode(self) -> str:
        """Who copies, as the client is told; in the words of lmcache 0.5."""
        said = self.told_transfer_mode
        old_names = lmcache_mp.MODES_OF_0_4_7.items()
        return next((mode for mode, old in old_names if old == said), said)

    @property
    def told_transfer_mode(self) -> str:
        said = self.client_extra.get(lmcache_mp.TRANSFER_MODE)
        return str(said or self.environ.get("LMCACHE_MP_TRANSFER_MODE") or "auto")

    def value(self, name: str) -> str | None:
        """The value of an option; None if it is not given."""
        tokens = self.options.get(name)
        return None if tokens is None else " ".join(tokens[1:])

    def switched_off(self, name: str) -> bool:
        return is_off(self.options.get(name, ("",))[0])

    def switched_on(self, name: str) -> bool:
        return name in self.options and not self.switched_off(name)

    @property
    def publishes_events(self) -> bool:
        """vLLM's own default is off; a config that cannot be read is vLLM's to refuse."""
        try:
            config = json.loads(self.value(EVENTS) or "{}")
        except ValueError:
            return False
        return isinstance(config, dict) and bool(config.get("enable_kv_cache_events"))

    @property
    def connectors(self) -> Sequence[Config]:
        """The connectors in the config; those of a MultiConnector, without it."""
        if self.config is None:
            return ()
        children: list[Config] = extra(self.config).get("connectors", [self.config])
        return children

    def connector(self, name: str) -> Config | None:
        return next((c for c in self.connectors if c.get("kv_connector") == name), None)

    @property
    def client(self) -> Config | None:
        """The sidecar's client."""
        return self.connector(lmcache_mp.NAME)

    @property
    def native(self) -> Config | None:
        """vLLM's own connector, where its objects are the sidecar's."""
        config = self.connector(offloading.NAME)
        ours = config is not None and extra(config).get("spec_name") == offloading.SPEC
        return config if ours else None

    @property
    def client_extra(self) -> Config:
        return extra(self.client or {})

    def needs(self) -> set[Need]:
        """What the environment must be able to do for it."""
        role: Role = "aggregated"
        for one_of_a_pair in ("prefill", "decode"):
            if self.value("--disaggregation-mode") == one_of_a_pair:
                role = one_of_a_pair
        return needs(dict(self.config) if self.config else None, self.program, role)


def extra(config: Config) -> Config:
    """The `kv_connector_extra_config`; empty where there is none."""
    found: Config = config.get("kv_connector_extra_config", {})
    return found


def parse(command: Sequence[str], environ: Mapping[str, str]) -> Invocation:
    """What `[env ...] vllm serve ...` or `python -m dynamo.vllm ...` says, or that in one word.

    Raises ConfigError for any other program.
    """
    if len(command) == 1:
        command = _words(command[0])
    changed, words = _environment(command, environ)
    program, arguments = _program(words)
    return of_arguments(program, arguments, changed, unread=hidden(arguments))


def of_arguments(
    program: Program, arguments: Sequence[str], environ: Mapping[str, str], unread: bool = False
) -> Invocation:
    """`program` with these arguments."""
    options = {_LONG.get(name, name): tokens for name, tokens in by_name(arguments).items()}
    config, unreadable = _transfer_config(options)
    return Invocation(program, tuple(arguments), options, environ, config, unreadable, unread)


def _environment(
    command: Sequence[str], environ: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The variables that the program sees, and the words from the program on."""
    changed, words = dict(environ), list(command)
    while words:
        word = words[0]
        if word == "-u" and len(words) > 1:
            changed.pop(words[1], None)
            words.pop(0)
        elif word.partition("=")[0].isidentifier() and "=" in word:
            name, _, value = word.partition("=")
            changed[name] = value
        elif word not in ("env", "exec"):
            break
        words.pop(0)
    return changed, words


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"what stands after -- is no command: {error}") from None


def _program(words: list[str]) -> tuple[Program, list[str]]:
    """The worker, perhaps behind something that runs it (`uv run`), and its arguments."""
    for at, (first, second) in enumerate(pairwise(words)):
        if (PurePath(first).name, second) == ("vllm", "serve"):
            return "vllm", words[at + 2 :]
        if first == "-m" and second in _MODULES:
            return _MODULES[second], words[at + 2 :]
    raise ConfigError(
        f"{' '.join(words[:2])!r} after -- is no worker: give it as 'vllm serve ...' or "
        "'python -m dynamo.vllm ...'"
    )


# vLLM's short form, as `split` names it.
_LONG = {"---dcp": "--decode-context-parallel-size"}
_BY_VLLM: Config = {"kv_connector": lmcache_mp.NAME, "kv_role": "kv_both"}
_MODULES: dict[str, Program] = {
    "dynamo.vllm": "dynamo",
    "vllm.entrypoints.openai.api_server": "vllm",
}


def _transfer_config(options: Mapping[str, tuple[str, ...]]) -> tuple[Config | None, str]:
    tokens = options.get("--kv-transfer-config")
    if tokens is None:
        # Another way to the same client, which vLLM then configures itself.
        backend = options.get("--kv-offloading-backend", ("",))[-1]
        return (_BY_VLLM if backend == "lmcache" else None), ""
    if "." in tokens[0]:
        return None, ""
    try:
        config = json.loads(" ".join(tokens[1:]))
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON: {error}"
    if not _is_connector(config):
        return None, "not an object with a kv_connector and, perhaps, its extra config"
    children = extra(config).get("connectors", [config])
    if not (isinstance(children, list) and children and all(map(_is_connector, children))):
        return None, "its connectors are not a list of connectors"
    return config, ""


def _is_connector(config: Any) -> bool:
    if not isinstance(config, dict) or not isinstance(config.get("kv_connector"), str):
        return False
    return isinstance(config.get("kv_connector_extra_config", {}), dict)
