"""Small tokenizers of the kinds that models come with, and chat templates in the manner of the known families."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import Message

TEXTS = [
    "Zelda rides through the rain and Link follows her home.",
    "Who is the hero of the kingdom? The user asks, the assistant answers.",
    "1 + 1 = 2\n\nsystem model Today Date Jan 2025\n\n1 + 2 = 3\n\n",
]

LLAMA = (
    "{{ bos_token }}{% set today = date_string if date_string is defined else strftime_now('%d %b %Y') %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "<|head|>system<|/head|>\n\nToday Date: {{ today }}\n\n{{ first }}<|eot|>"
    "{% for m in turns %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|start|>system\nThe assistant answers.<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
PIECES = (  # control tokens put together by the template, so that they stand nowhere in it
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|' + 'assistant' + '|>' }}{% endif %}"
)
REASONING = (  # takes the last answer apart, and writes an empty thought where there is none
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set thought = '' %}{% set answer = m.content %}{% if '</think>' in m.content %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ answer }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SEAMS = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{{ eos_token }}"  # "[" + "CLS" + "]"

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|start|>", "<|end|>", "<|head|>", "<|/head|>", "<|eot|>", "[CLS]", "[SEP]"]
PLAIN_ADDED = [
    "<turn>",
    "</turn>",
    "[INST]",
    "[/INST]",
    "<think>",
    "</think>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]
FAMILIES = {
    "llama": LLAMA,
    "chatml": CHATML,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "pieces": PIECES,
    "reasoning": REASONING,
    "seams": SEAMS,
}


def byte_level(template: str | None, *, trim: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of Llama 3 and Qwen; `trim` leaves whitespace out of offsets, as GPT-2 and OPT do."""
    backend = Tokenizer(models.BPE())
    words = Regex(r"\s*\n+| ?\p{L}+| ?[^\s\p{L}]+|\s+")  # newlines in a row are one word
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if trim:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return _finished(backend, template)


def sentence_piece(template: str | None) -> PreTrainedTokenizerFast:
    """BPE over text whose spaces are letters and which gets one in front, as of Llama 2; unknown letters are bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=["<unk>", *SPECIAL, *bytes_], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    # bytes are in the vocabulary, but no added tokens
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in bytes_]
    made = _finished(Tokenizer.from_str(json.dumps(state)), template)
    made.add_special_tokens({"unk_token": "<unk>"})
    return made


def lower_casing(template: str | None) -> PreTrainedTokenizerFast:
    """Whole words after narrowing and lower-casing, so that "＜ＴＵＲＮ＞" reads "<turn>"."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", *SPECIAL], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    made = _finished(backend, template)
    made.add_special_tokens({"unk_token": "<unk>"})
    return made


def _finished(backend: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    made.add_tokens(PLAIN_ADDED)
    made.chat_template = template
    return made


def talk(*said: tuple[str, str]) -> Conversation:
    """A conversation of (role, content) pairs."""
    return Conversation(tuple(Message(role, content) for role, content in said))


def turns(conversation: Conversation) -> list[dict[str, str]]:
    """A conversation in the form that `apply_chat_template` takes."""
    return [said.to_dict() for said in conversation.messages]
