"""Small random models of every supported architecture, with a small tokenizer, built in code: nothing is downloaded."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CORPUS = [
    "Describe the weather in spring and name three flowers that bloom early.",
    "Write a short story about a fox who learns to share its food with friends.",
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "To bake bread, mix flour, water, salt and yeast; knead, rest and bake until golden.",
]
_SIZES = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "pad_token_id": 0}
_LLAMA = _SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
_OPT = _SIZES | {"ffn_dim": 64, "max_position_embeddings": 256, "word_embed_proj_dim": 32}

ARCHITECTURES = {
    "llama": ("Llama", _LLAMA),
    "mistral": ("Mistral", _LLAMA | {"sliding_window": 6}),
    "qwen2": ("Qwen2", _LLAMA),
    "qwen3": ("Qwen3", _LLAMA | {"head_dim": 8}),
    "gemma2": ("Gemma2", _LLAMA | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3",
        _LLAMA | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    ),
    "phi3": ("Phi3", _LLAMA),
    "gpt_neox": ("GPTNeoX", _SIZES | {"intermediate_size": 48, "max_position_embeddings": 256}),
    "opt": ("OPT", _OPT),
    "opt_post_norm": ("OPT", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "bert": ("Bert", _SIZES | {"intermediate_size": 48, "max_position_embeddings": 256}),
    "roberta": ("Roberta", _SIZES | {"intermediate_size": 48, "max_position_embeddings": 256}),
}
"""Name -> (class prefix, configuration). Four blocks each; sliding windows are shorter than the test rows."""

WITHOUT_FINAL_NORM = ("opt_post_norm", "bert", "roberta")


def save_small_model(folder: Path, name: str = "llama", padding_side: str = "right", seed: int = 0, **changes) -> Path:
    """A random model of architecture `name` and its tokenizer under `folder`, which is returned."""
    prefix, options = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = _build(prefix, options | changes)
    model.eval()
    with torch.no_grad():  # weights large enough for blocks to matter, biases and norms not at their neutral start
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    small_tokenizer(padding_side).save_pretrained(folder)
    return folder


def _build(prefix: str, options: dict) -> torch.nn.Module:
    if prefix == "Gemma3":  # a text model inside a multimodal one, as the Hub has it
        text = transformers.Gemma3TextConfig(**options)
        vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2)
        vision |= dict(image_size=28, patch_size=14)
        config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision)
        return transformers.Gemma3ForConditionalGeneration(config)
    head = "ForMaskedLM" if prefix in ("Bert", "Roberta") else "ForCausalLM"
    return getattr(transformers, prefix + head)(getattr(transformers, prefix + "Config")(**options))


def small_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with chat markers and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special[3:],
        padding_side=padding_side,
        chat_template=TEMPLATE,
        model_max_length=256,
    )
