"""A program: what vLLM's own model classes keep of a token, layer by layer.

Each model is built without memory (on the device `meta`) from the default configuration of its
class, for as many of vLLM's architectures as have one, and then from the configurations on stdin
(`{name: config.json}`). Prints a JSON object for each: name, config, text (as its class fills it
in), and kept, `[bytes a token, windowed, layers]` of each kind, or error. States have no bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
import torch
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.transformers_utils.config import _CONFIG_REGISTRY, get_hf_text_config

_SUFFIX = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")


def main() -> None:
    given = json.load(sys.stdin)
    # Each architecture would be looked at in a process of its own.
    registry._LazyRegisteredModel.inspect_model_cls = lambda lazy: (
        registry._ModelInfo.from_model_cls(lazy.load_model_cls())
    )
    with tempfile.TemporaryDirectory() as folder:
        start_alone(Path(folder))
        for name, config in (*defaults(Path(folder)), *given.items()):
            directory = Path(folder, name)
            directory.mkdir(exist_ok=True)
            (directory / "config.json").write_text(json.dumps(config))
            found = {"name": name, "config": config, **looked_at(directory)}
            print(json.dumps(found, default=str), flush=True)


def start_alone(folder: Path) -> None:
    """vLLM's groups of processes, with one member each."""
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{folder}/group", 0, "gloo")
        initialize_model_parallel(1, 1)


def defaults(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """An architecture of vLLM's, and what its configuration class would save."""
    for architecture in registry._TEXT_GENERATION_MODELS:
        for model_type in model_types(architecture):
            with contextlib.suppress(Exception):  # a class without defaults
                by_vllm = model_type in _CONFIG_REGISTRY
                made = (_CONFIG_REGISTRY if by_vllm else CONFIG_MAPPING)[model_type]()
                made.architectures = [architecture]
                made.save_pretrained(folder / "saved")
                text = (folder / "saved" / "config.json").read_text()
                yield f"{architecture}-{model_type}", json.loads(text)


def model_types(architecture: str) -> list[str]:
    """Those of transformers' models of this name, or the one that is called like it."""
    maps = [getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("_NAMES")]
    found = {key for each in maps for key, value in each.items() if value == architecture}
    called = _SUFFIX.sub("", architecture).lower()
    for model_type in {*CONFIG_MAPPING_NAMES, *_CONFIG_REGISTRY.keys()}:
        if re.sub("[-_]", "", model_type) == called:
            found.add(model_type)
    return sorted(found)


def looked_at(directory: Path) -> dict[str, Any]:
    try:
        config = EngineArgs(
            model=str(directory),
            skip_tokenizer_init=True,
            load_format="dummy",
            enforce_eager=True,
            dtype="bfloat16",
        ).create_engine_config()
        text = get_hf_text_config(config.model_config.hf_config).to_dict()
        return {"text": text, "kept": kept(config)}
    except Exception as error:  # not for a CPU, or a default that vLLM cannot take
        return {"error": f"{type(error).__name__}: {error}"}


def kept(config: VllmConfig) -> list[Any]:
    with set_current_vllm_config(config), torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        initialize_model(vllm_config=config)
        torch.set_default_dtype(torch.float32)
    found: Counter[tuple[float, bool]] = Counter()
    for layer in config.compilation_config.static_forward_context.values():
        spec = isinstance(layer, AttentionLayerBase) and layer.get_kv_cache_spec(config)
        if spec:
            state = "Mamba" in type(spec).__name__
            windows = (
                getattr(spec, key, None) for key in ("sliding_window", "attention_chunk_size")
            )
            found[0 if state else spec.page_size_bytes / spec.block_size, any(windows)] += 1
    return [[size, windowed, layers] for (size, windowed), layers in sorted(found.items())]


if __name__ == "__main__":
    main()
