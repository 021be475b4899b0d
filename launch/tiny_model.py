"""A model made on the spot: a Llama with random weights and one token per byte of text.

`python -m launch.tiny_model DIR` makes one of 50 MB.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Shapes = dict[str, tuple[int, ...]]
HEAD_SIZE = 64
VOCABULARY = 320
MAX_TOKENS = 4096
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
)


def make_model(directory: Path, *, hidden: int, layers: int) -> Path:
    """Write a servable model into `directory`; the same arguments give the same weights.

    256 x 4 is 6 MB, 512 x 8 is 50 MB.
    """
    config = llama_config(hidden, layers)
    return write_model(directory, config, llama_shapes(config))


def write_model(directory: Path, config: dict[str, object], shapes: Shapes) -> Path:
    """Write a model of this config.json, with random tensors of these shapes by name."""
    directory.mkdir(parents=True)
    write_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    random = np.random.default_rng(seed=0)
    # Wide enough that the greedy output depends on the context, narrow enough not to saturate.
    deviation = 0.08 * math.sqrt(256 / whole(config, "hidden_size"))
    tensors = {name: tensor(random, shape, deviation) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def llama_config(hidden: int, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        **common_config(hidden, layers),
    }


def common_config(hidden: int, layers: int) -> dict[str, object]:
    """What does not depend on the kind of model."""
    heads = hidden // HEAD_SIZE
    return {
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def llama_shapes(config: dict[str, object]) -> Shapes:
    hidden = whole(config, "hidden_size")
    layers: Shapes = {}
    for layer in range(whole(config, "num_hidden_layers")):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            layers[f"{prefix}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        layers |= mlp_shapes(prefix, config)
    return with_ends(layers, hidden)


def with_ends(layers: Shapes, hidden: int) -> Shapes:
    """The layers, and what lies before and behind them."""
    return {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        **layers,
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCABULARY, hidden),
    }


def mlp_shapes(prefix: str, config: dict[str, object]) -> Shapes:
    """A layer's MLP, and the norms before it and before the attention."""
    hidden, inner = whole(config, "hidden_size"), whole(config, "intermediate_size")
    return {
        f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
        f"{prefix}.mlp.up_proj.weight": (inner, hidden),
        f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
    }


def whole(config: dict[str, object], name: str) -> int:
    return int(str(config[name]))


def tensor(random: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float16)
    return (random.standard_normal(shape, np.float32) * deviation).astype(np.float16)


def write_tokenizer(directory: Path) -> None:
    """Byte-level BPE without merges: the prompt's length in bytes is its length in tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    # Every id that the model can choose must have a text.
    spare = VOCABULARY - len(alphabet) - len(SPECIAL)
    tokenizer.add_tokens([f"<{i}>" for i in range(spare)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": MAX_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where; it is made, too")
    directory = parser.parse_args().directory
    if directory.exists():
        parser.exit(2, f"{parser.prog}: {directory} exists\n")
    make_model(directory, hidden=512, layers=8)


if __name__ == "__main__":
    main()
