"""Small random multimodal models and mixtures of experts, and their files changed, for example into FP8."""

import json
import re
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import small_tokenizer

_TEXT = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_IMAGES = _VISION | {"image_size": 28, "patch_size": 14}
_THREE_WAYS = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
_MLLAMA_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2,
    "image_size": 28, "patch_size": 14, "vision_output_dim": 32, "intermediate_layers_indices": [0],
}  # fmt: skip
_MLLAMA_TEXT = {"cross_attention_layers": [2], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}

MULTIMODAL = {
    "gemma3": ("Gemma3", {"head_dim": 8, "query_pre_attn_scalar": 8}, {"vision_config": _IMAGES}),
    "idefics3": ("Idefics3", {"model_type": "llama"}, {"vision_config": _IMAGES}),
    "qwen2_vl": ("Qwen2VL", _THREE_WAYS, {"vision_config": {"depth": 2, "embed_dim": 16, "num_heads": 2}}),
    "mllama": ("Mllama", _MLLAMA_TEXT, {"vision_config": _MLLAMA_VISION}),
}
"""Name -> class prefix, what its text model has of its own, and its other parts.

The weights of the text models stand under ``language_model.model.``, ``model.text_model.``, ``model.`` and, of a type
that AutoModel does not know, ``language_model.model.``."""

_ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    "n_group": 2, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
EXPERTS = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2Moe", _ROUTED | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 2}),
    "qwen3_moe": ("Qwen3Moe", _ROUTED | {"head_dim": 8}),
    "deepseek_v3": ("DeepseekV3", _LATENT),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "head_dim": 8, "sliding_window": 64, "intermediate_size": 32}),
}
"""Name -> class prefix, and what it has of its own."""


def save_multimodal(folder: Path, name: str, **changes) -> torch.nn.Module:
    """A random model with parts beside its text model, under `folder`, with a tokenizer; the model itself."""
    prefix, text, parts = MULTIMODAL[name]
    config = getattr(transformers, f"{prefix}Config")(text_config=_TEXT | text | changes, **parts)
    return _saved(getattr(transformers, f"{prefix}ForConditionalGeneration"), config, folder)


def save_experts(folder: Path, name: str) -> torch.nn.Module:
    """A random mixture of experts under `folder`, with a tokenizer; the model itself."""
    prefix, options = EXPERTS[name]
    config = getattr(transformers, f"{prefix}Config")(**(_TEXT | options))
    return _saved(getattr(transformers, f"{prefix}ForCausalLM"), config, folder)


def _saved(kind, config, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return model


def rewritten(source: Path, target: Path, change, **config) -> Path:
    """A copy of a model whose weights are what `change` makes of them, with further entries in its configuration."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    weights = change(load_file(source / "model.safetensors"))
    save_file(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()},
        target / "model.safetensors",
        {"format": "pt"},
    )
    stated = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(stated))
    return target


FP8 = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}
_PROJECTION = re.compile(r"layers\.\d+\.(self_attn|mlp)\..*_proj\.weight$")


def in_fp8(weights: dict, scales: bool = True) -> dict:
    """Projections of the text model as fine-grained FP8: 8 x 8 blocks, each with a scale beside it."""
    made = {}
    for name, value in weights.items():
        if not _PROJECTION.search(name) or "vision" in name or any(size % 8 for size in value.shape):
            made[name] = value
            continue
        outer, inner = value.shape
        blocks = value.float().reshape(outer // 8, 8, inner // 8, 8)
        scale = blocks.abs().amax((1, 3)) / 448
        made[name] = (blocks / scale[:, None, :, None]).reshape(outer, inner).to(torch.float8_e4m3fn)
        if scales:
            made[f"{name}_scale_inv"] = scale
    return made
