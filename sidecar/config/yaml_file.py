"""The YAML file: one flat mapping of option names to scalars, or to JSON-like values."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from sidecar.config.options import OPTIONS
from sidecar.config.suggest import suggestion
from sidecar.config.values import ConfigError

_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class YamlValue:
    """One key as written, its text (None: no value), and ``file:line``."""

    key: str
    text: str | None
    place: str


def read(path: Path) -> dict[str, YamlValue]:
    """Entries by option name.

    The scalars stay text as written: ``0600`` is not turned into a number by YAML's rules.

    Raises:
        ConfigError: the file cannot be read, is no flat mapping, or has a wrong key.
    """
    root = _compose(path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected lines of the form 'key: value'")
    entries: dict[str, YamlValue] = {}
    for entry in _entries(path, root):
        name = entry.key.replace("-", "_")
        if name not in OPTIONS:
            known = [option.replace("_", "-") for option in OPTIONS]
            raise ConfigError(f"{entry.place}: unknown key {entry.key}{suggestion(name, known)}")
        if name in entries:
            raise ConfigError(f"{entry.place}: {entry.key} was given before")
        entries[name] = entry
    return entries


def _compose(path: Path) -> yaml.Node | None:
    try:
        with path.open(encoding="utf-8") as stream:
            return yaml.compose(stream, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"{path}: not a text file in UTF-8") from None


def _entries(path: Path, root: yaml.MappingNode) -> Iterator[YamlValue]:
    for key, value in root.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{place}: expected 'key: value'")
        option = OPTIONS.get(key.value.replace("-", "_"))
        if isinstance(value, yaml.ScalarNode):
            yield YamlValue(key.value, None if value.tag == _NULL else value.value, place)
        elif option is not None and option.is_json:
            yield YamlValue(key.value, _as_json(key.value, value, place), place)
        else:
            raise ConfigError(f"{place}: {key.value}: expected one value, not a list or mapping")


def _as_json(key: str, node: yaml.Node, place: str) -> str:
    try:
        return json.dumps(yaml.SafeLoader("").construct_object(node, deep=True))
    except yaml.MarkedYAMLError as error:
        problem = error.problem  # its text has several lines
    except (TypeError, ValueError) as error:  # a date, a set, !!int x
        problem = f"{error}; quote what is meant as text"
    raise ConfigError(f"{place}: {key}: {problem}")
