"""Small models with random weights whose KV is of other kinds than the demo model's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from launch.tiny_model import (
    HEAD_SIZE,
    VOCABULARY,
    Shapes,
    common_config,
    mlp_shapes,
    tensor,
    with_ends,
    write_model,
)

HIDDEN, HEADS = 256, 4
RANK = 8
WINDOW = 384
LAYER_TYPES = ("sliding_attention", "sliding_attention", "full_attention") * 2
# vLLM's groups have as many layers as there are of the rarest kind: two, and twice two here.
HYBRID_GROUPS = 3
LATENT_LAYERS = 4
RECURRENT_TYPES = ("conv", "full_attention") * 2
# DeepSeek's own sizes, which kernels on GPUs are made for.
LATENT, NOPE, ROPE, VALUE = 512, 128, 64, 128
# Wide, which makes the attention sharp: what is said then depends on the context.
QUERY = 1024


def make_hybrid_model(directory: Path) -> Path:
    """A Gemma 3 of 10 MB: layers that see the last WINDOW tokens, and layers that see all."""
    config = {
        **common_config(HIDDEN, len(LAYER_TYPES)),
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": HEAD_SIZE,
        "query_pre_attn_scalar": HEAD_SIZE,
        "sliding_window": WINDOW,
        "layer_types": LAYER_TYPES,
    }
    layers: Shapes = {}
    for layer in range(len(LAYER_TYPES)):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            layers[f"{prefix}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name in "qk":
            layers[f"{prefix}.self_attn.{name}_norm.weight"] = (HEAD_SIZE,)
        for name in ("pre", "post"):
            layers[f"{prefix}.{name}_feedforward_layernorm.weight"] = (HIDDEN,)
        layers |= mlp_shapes(prefix, config)
    return write_model(directory, config, with_ends(layers, HIDDEN))


def make_latent_model(directory: Path) -> Path:
    """A DeepSeek V2 of 19 MB without experts: MLA, one latent of 576 elements for all heads."""
    config = {
        **common_config(HIDDEN, LATENT_LAYERS),
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_act": "silu",
        "kv_lora_rank": LATENT,
        "q_lora_rank": QUERY,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": VALUE,
        # The layers before the first with experts are all.
        "first_k_dense_replace": LATENT_LAYERS,
    }
    layers: Shapes = {}
    for layer in range(LATENT_LAYERS):
        prefix = f"model.layers.{layer}"
        layers |= _latent_attention(f"{prefix}.self_attn") | mlp_shapes(prefix, config)
    return write_model(directory, config, with_ends(layers, HIDDEN))


def make_recurrent_model(directory: Path) -> Path:
    """An LFM2 of 6 MB: layers whose state is the last tokens' (vLLM: Mamba), and attention."""
    inner = HIDDEN * 11 // 4
    config = {
        **common_config(HIDDEN, len(RECURRENT_TYPES)),
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "layer_types": RECURRENT_TYPES,
        "conv_L_cache": 3,
        "conv_bias": False,
        "conv_dim": HIDDEN,
        "block_dim": HIDDEN,
        "block_ff_dim": inner,
        "block_multiple_of": 1,
        "block_auto_adjust_ff_dim": False,
        "block_ffn_dim_multiplier": 1.0,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "tie_embedding": True,
    }
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.embedding_norm.weight": (HIDDEN,),
    }
    for layer, kind in enumerate(RECURRENT_TYPES):
        prefix = f"model.layers.{layer}"
        shapes |= _convolution(prefix) if kind == "conv" else _plain_attention(prefix)
        for name in ("operator", "ffn"):
            shapes[f"{prefix}.{name}_norm.weight"] = (HIDDEN,)
        for name, shape in (
            ("w1", (inner, HIDDEN)),
            ("w2", (HIDDEN, inner)),
            ("w3", (inner, HIDDEN)),
        ):
            shapes[f"{prefix}.feed_forward.{name}.weight"] = shape
    return write_model(directory, config, shapes)


def _convolution(prefix: str) -> Shapes:
    return {
        f"{prefix}.conv.conv.weight": (HIDDEN, 1, 3),
        f"{prefix}.conv.in_proj.weight": (3 * HIDDEN, HIDDEN),
        f"{prefix}.conv.out_proj.weight": (HIDDEN, HIDDEN),
    }


def _plain_attention(prefix: str) -> Shapes:
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return {
        **{f"{prefix}.self_attn.{name}.weight": (HIDDEN, HIDDEN) for name in projections},
        f"{prefix}.self_attn.q_layernorm.weight": (HEAD_SIZE,),
        f"{prefix}.self_attn.k_layernorm.weight": (HEAD_SIZE,),
    }


def make_adapter(directory: Path, number: int) -> Path:
    """A LoRA adapter for a demo model of 256 x 4; each `number` has other weights."""
    directory.mkdir(parents=True)
    said = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 4 * RANK,
        "target_modules": ["k_proj", "v_proj"],
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(said))
    random = np.random.default_rng(number)
    prefix = "base_model.model.model.layers"
    tensors = {
        f"{prefix}.{layer}.self_attn.{name}_proj.lora_{side}.weight": tensor(random, shape, 0.2)
        for layer in range(4)
        for name in "kv"
        for side, shape in (("A", (RANK, HIDDEN)), ("B", (HIDDEN, RANK)))
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def _latent_attention(prefix: str) -> Shapes:
    return {
        f"{prefix}.q_a_proj.weight": (QUERY, HIDDEN),
        f"{prefix}.q_a_layernorm.weight": (QUERY,),
        f"{prefix}.q_b_proj.weight": (HEADS * (NOPE + ROPE), QUERY),
        f"{prefix}.kv_a_proj_with_mqa.weight": (LATENT + ROPE, HIDDEN),
        f"{prefix}.kv_a_layernorm.weight": (LATENT,),
        f"{prefix}.kv_b_proj.weight": (HEADS * (NOPE + VALUE), LATENT),
        f"{prefix}.o_proj.weight": (HIDDEN, HEADS * VALUE),
    }
