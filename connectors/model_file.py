"""A model's config.json: read, and held against what is known here or by the model's class."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from connectors.config_values import ModelConfig
from connectors.errors import ConnectorError, NotKnown
from connectors.model_config import Model, model

# It imports vLLM, and with it PyTorch.
_CLASS_SECONDS = 240.0
_OTHER_INPUTS = re.compile(r"^(thinker_config|(vision|visual|image|audio|video)\w*_config)$")


def read(path: Path, ask_classes: bool = False) -> Model:
    """The model of a config.json, or of the directory that holds one.

    `ask_classes`: of a model that is not known here, the classes of vLLM or transformers say
    more, where one of them is installed.

    Raises ConnectorError, in one line, for what is no such file or says too little.
    """
    file = path / "config.json" if path.is_dir() else path
    config = _loaded(file)
    if not isinstance(config, dict):
        raise ConnectorError(f"{file} is not a model's config.json: it holds no object")
    # ModelOpt writes its part beside it.
    beside = file.with_name("hf_quant_config.json")
    if "quantization_config" not in config and beside.exists():
        config["quantization_config"] = _loaded(beside)
    try:
        return _by_table_or_class(config, ask_classes)
    except ConnectorError as error:
        raise ConnectorError(f"{file}: {error}") from None


def is_latent(model: str) -> bool:
    """Whether the directory `model` says MLA; False where there is no config.json to read."""
    found = _found(model)
    return found is not None and found.latent


def is_recurrent(model: str) -> bool:
    """Whether the directory `model` says recurrent state; False as in `is_latent`."""
    found = _found(model)
    return found is not None and found.recurrent_layers > 0


def is_multimodal(model: str) -> bool:
    """Whether the directory `model` says that it takes more than text; False as in `is_latent`."""
    try:
        config = _loaded(Path(model, "config.json")) if model else None
    except ConnectorError:
        return False
    return isinstance(config, dict) and any(_OTHER_INPUTS.search(key) for key in config)


def filled_by_class(config: ModelConfig) -> ModelConfig | None:
    """The language model of `config` as its class fills it in; None without such a class."""
    try:
        done = subprocess.run(
            # -P: what is called like our modules beside the program (nixl) is another's.
            [sys.executable, "-P", str(Path(__file__).with_name("model_classes.py"))],
            input=json.dumps(config),
            capture_output=True,
            text=True,
            timeout=_CLASS_SECONDS,
        )
        text: ModelConfig = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return text


def _found(model: str) -> Model | None:
    """What the directory `model` says; None where there is no config.json to read."""
    try:
        return read(Path(model)) if model else None
    except ConnectorError:
        return None


def _loaded(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConnectorError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConnectorError(f"{file} is not JSON: {error}") from None


def _by_table_or_class(config: ModelConfig, ask_classes: bool) -> Model:
    try:
        return model(config)
    except NotKnown as unknown:
        if not ask_classes or not config.get("model_type"):
            raise
        text = filled_by_class(config)
        if text is None:
            raise NotKnown(f"{unknown}, nor has vLLM or transformers here its class") from None
        return model(config, text)
