"""The keys of a config.json that bear on KV, and which of them are understood here.

A key that is not must never pass for "all layers attend to everything".
"""

import re
from collections.abc import Iterator

from connectors.attention_shape import HEAD_SIZE, HEADS, KV_HEADS, LAYERS, WIDTH
from connectors.config_values import ModelConfig, model_type

# A word of a key's name that tells of attention, layers or states.
_WORDS = re.compile(
    r"(^|_)(attn\w*|attention|bidirectional|block|blocks|cache|causal|chunk\w*|cla|compress\w*|"
    r"conv|cross|global|gdn|group|groups|head|heads|headdim|hybrid|idxs?|index\w*|indices|"
    r"interval|kda|kv|latent|layers?|lightning|linear|local|mamba\w*|memory|mla|nope|pattern|"
    r"period|query|rank|recurrent|rwkv|share|sliding|sparse|ssm|states?|swa|types|window|yoco)"
    r"(_|$)"
)
# Words of keys that have no part in it, whatever else their names say.
_OTHER = re.compile(
    r"(^|_)(act|activation|audio|beta|bias|clip\w*|cross_entropy|drop\w*|dtype|eps|epsilon|expert|"
    r"experts|ffn?|fp32|gate|gating|granularity|init\w*|intermediate|laurel|lm|loss|mlp|moe|mtp|"
    r"multiplier\w*|norm|output|pdrop|prob|probs|rope|rotary|scal\w*|size_in|smooth\w*|softcap\w*|"
    r"temperature|theta|token|topk|use_cache|value_scale|vision|vocab|weights)(_|$)"
)
_READ = {
    *LAYERS, *HEADS, *KV_HEADS, *WIDTH, *HEAD_SIZE,
    "attention_chunk_size", "attention_k_eq_v", "attn_config", "attn_layer_indices",
    "attn_layer_offset", "attn_layer_period", "attn_type_list", "full_attention_interval",
    "full_attn_idxs", "global_head_dim", "hybrid_layer_pattern", "hybrid_override_pattern",
    "index_head_dim", "kv_lora_rank", "layer_types", "layers_block_type", "linear_attn_config",
    "max_window_layers", "multi_query", "new_decoder_architecture", "num_global_key_value_heads",
    "num_kv_shared_layers", "per_layer_config", "qk_nope_head_dim", "qk_rope_head_dim",
    "sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "sliding_window_size",
    "swa_head_dim", "swa_num_key_value_heads", "swa_v_head_dim", "use_sliding_window", "v_head_dim",
}  # fmt: skip
# Looked at one by one: they say how something is computed, not what is kept.
_NO_BEARING = {
    # which layers have experts or are dense
    "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of",
    "decoder_sparse_step", "first_k_dense_replace", "interleave_moe_layer_step",
    "num_dense_layers", "n_group", "num_expert_group", "shared_expert_overlap",
    # how attention is computed
    "attn_implementation", "llm_attn_implementation", "attn_res_block_size", "attention_dim",
    "attn_temperature_tuning", "apply_query_key_layer_scaling", "index_n_heads", "index_topk",
    "multi_query_attention", "nope_layer_interval", "no_rope_layer_interval", "no_rope_layers",
    "num_attention_heads_per_layer", "parallel_attn", "q_lora_rank", "qk_head_dim",
    "qk_scale_factor", "query_pre_attn_scalar", "reorder_and_upcast_attn",
    "swa_num_attention_heads", "use_attn_output_gate", "num_ln_in_parallel_attn",
    "prefix_attn", "share_q_dim", "prefix_dense_sliding_window_pattern",
    "global_attn_every_n_layers", "mla_use_nope",
    "mla_use_output_gate", "gated_mla",
    # layers of a draft model
    "num_nextn_predict_layers",
    # inputs beside the tokens
    "hidden_size_per_layer_input", "activation_sparsity_pattern",
}  # fmt: skip
# Sizes of states, of no account where some layers are known to have them.
_STATES = re.compile(
    r"(^|_)(conv|d_conv|gdn|kda|linear|mamba\w*|n_groups|recurrent|ssm|states?|short_conv|chunk)"
    r"(_|$)|^(chunk_size|n_groups|time_step_rank|num_heads)$"
)


def not_understood(text: ModelConfig, states: bool) -> Iterator[str]:
    """Keys with a value that may bear on KV; `states`: some layers are known to have those."""
    for key, value in text.items():
        if value in (None, False, 0, "", [], {}) or key in _READ or key in _NO_BEARING:
            continue
        if not _WORDS.search(key) or _OTHER.search(key):
            continue
        # Of images alone (PaliGemma); elsewhere it may make an encoder.
        if key == "use_bidirectional_attention" and model_type(text) == "gemma":
            continue
        if not (states and _STATES.search(key)):
            yield key
