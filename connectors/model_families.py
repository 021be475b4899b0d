"""What families of models (`model_type`) mean by a key that their config.json leaves out.

From the configuration classes of transformers 5.19 and vLLM 0.32, and for those without a class
from the models of vLLM 0.32. tests/conformance/test_sizing.py holds them against what vLLM builds.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Every layer keeps KV of every token, unless a key says otherwise.
PLAIN = _names("""
    apertus arcee aria_text axk1 baichuan bamba bloom chatglm codegen cohere cosmos3_edge_text dbrx
    deepseek deepseek_ocr2_text deepseek_v2 deepseek_v3 deepseek_v32 deepseek_vl_v2 diffllama
    dots3_note ernie4_5 ernie4_5_moe ernie4_5_vl_moe_text exaone falcon falcon_h1 falcon_mamba
    flex_olmo gemma glm glm4 glm4_moe glm4_moe_lite glm4v_moe_text glm4v_text glm_image_text
    glm_ocr_text gpt2 gpt_bigcode gpt_neox gptj granite granite4_vision_text granitemoe
    granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl_text hy_v3 hyperclovax
    internlm internlm2 internlm3 jais jais2 jamba jetmoe kimi_k2 kimi_linear llama longcat_flash
    mamba mamba2 minicpm minicpm3 minimax_m2 nanochat nemotron olmo olmo2 olmoe opt orion
    paddleocr_vl_text pangu_ultra_moe persimmon phi qwen qwen3_vl_text RefinedWeb RefinedWebModel
    seed_oss solar solar_open stablelm step3_text telechat xverse
    """)
# Some layers may have a window; the size of a head is that of the model over its heads.
WINDOWED = _names("""
    cohere2 exaone4 exaone_moe granite_swa granitemoe_swa granitemoehybrid lfm2 lfm2_moe minimax
    ministral mistral mixtral nemotron_h olmo3 olmo_hybrid phi3 phimoe qwen2 qwen2_5_omni_text
    qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3_moe qwen3_omni_moe_text qwen3_vl_moe_text smollm3
    starcoder2 step3p5
    """)
# The class has a size of its own for heads, whatever the model's size.
_OWN_HEAD_SIZE = _names("""
    cosmos3_edge_text ernie4_5 gemma glm glm4 helium hy_v3 minimax_m2 nemotron_h paddleocr_vl_text
    qwen3_vl_text seed_oss solar_open step3_text
    """)
DERIVED_HEAD_SIZE = (PLAIN | WINDOWED) - _OWN_HEAD_SIZE
# As many KV heads as heads.
ALL_HEADS = _names("""
    apertus arcee aria_text baichuan bloom codegen cohere cohere2 deepseek_ocr2_text diffllama
    exaone falcon flex_olmo gpt2 gpt_bigcode gpt_neox gptj granite granitemoe granitemoeshared
    hunyuan_v1_dense hunyuan_v1_moe hyperclovax internlm jais jais2 llama minicpm nanochat nemotron
    olmo olmo2 olmo3 olmoe opt orion persimmon phi phi3 qwen RefinedWeb RefinedWebModel stablelm
    xverse
    """)
# Windows and heads of their own, which their config.json has to say.
_OTHER = _names("""
    afmoe cohere2_moe gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text gpt_oss laguna
    llama4_text mimo_v2 mimo_v2_flash ministral3 muse_glimmer_text qwen3 qwen3_5_moe_text
    qwen3_5_text qwen3_next
    """)
KNOWN = PLAIN | WINDOWED | _OTHER
# No layer attends.
ALL_STATES = frozenset(["falcon_mamba", "mamba", "mamba2"])
# Every layer has attention and a state beside each other.
BOTH = frozenset(["falcon_h1"])
# vLLM gives every layer the one window that the config has.
ALL_WINDOWED = frozenset(["mistral", "mixtral", "ministral", "phi3", "phimoe", "starcoder2"])
# Of each so many layers the last attends to everything.
INTERVALS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
# vLLM runs these with MLA (`is_deepseek_mla` in `model_arch_config_convertor.py`).
LATENT = _names("""
    axk1 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_vl_v2 dots3_note glm4_moe_lite kimi_k2
    kimi_linear longcat_flash pangu_ultra_moe
    """)
# These compress KV for MLA too, and keep what they expand it to.
EXPANDED = frozenset(["minicpm3"])
ENCODERS = _names("""
    albert bert camembert clip distilbert electra ernie eurobert gte mpnet modernbert new
    nomic_bert roberta siglip xlm-roberta
    """)
# What a config.json without some keys means.
CLASS_DEFAULTS: dict[str, dict[str, int]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
    },
    "gemma4_text": {"global_head_dim": 512},
    "gemma4_unified_text": {"global_head_dim": 512},
}
