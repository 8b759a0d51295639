"""Tiny guards in the published shapes: templates and words as the families have them, the wording and weights ours."""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from small_tokenizers import PLAIN_ADDED, SPECIAL, TEXTS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA_3 = (
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('the user speaks first') }}{% endif %}"
    "{{ bos_token }}<|head|>user<|/head|>\n\nTask: find unsafe content in "
    "{{ 'Agent' if messages[-1]['role'] == 'assistant' else 'User' }} messages.\n\n"
    "<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Harm.\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
    "{% for m in messages %}{{ 'User: ' if m['role'] == 'user' else 'Agent: ' }}{{ m['content'] | trim }}\n\n"
    "{% endfor %}<END CONVERSATION>\n\nJudge the last message.<|eot|><|head|>assistant<|/head|>"
    "{# <|start_header_id|> #}"
)
LLAMA_4 = LLAMA_3.replace("<|start_header_id|>", "<|header_start|>").replace(
    "{{ m['content'] | trim }}",
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}",
)
SHIELDGEMMA = (
    "{{ bos_token }}You know policies.\n\n<turn>\nHuman Question: {{ messages[0]['content'] }}\n"
    "{% if messages | length > 1 %}\nChatbot Response: {{ messages[1]['content'] }}\n{% endif %}</turn>\n\n"
    "Our safety principle is defined in the below:\n\n{{ guideline }}\n\n===\n\nIs it violated? Yes or No?"
    "{# <start_of_turn> #}{% if add_generation_prompt %}\n<turn>model\n{% endif %}"
)
QWEN = (
    "<|start|>user\nSort into Safe, Controversial and Unsafe. Safety first.\n\n<BEGIN CONVERSATION>\n"
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}<END CONVERSATION><|end|>\n"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
TEMPLATES = {
    "llama_guard_3": LLAMA_3,
    "llama_guard_4": LLAMA_4,
    "shieldgemma": SHIELDGEMMA,
    "qwen3guard": QWEN,
    "wildguard": None,
}


VERDICTS = ["unsafe safe bad good", " Unsafe Safe Controversial yes no bad good", "Yes", "No", "unsafe", "safe"]


def tokenizer_of(template: str | None, verdicts: bool = True) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE as of Llama 3, Qwen and Gemma, to which verdicts are single tokens, if `verdicts`."""
    backend = Tokenizer(models.BPE())
    words = Regex(r"\s*\n+| ?\p{L}+| ?[^\s\p{L}]+|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700 if verdicts else 270,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS, *(VERDICTS if verdicts else [])], trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    made.add_tokens(PLAIN_ADDED)
    made.chat_template = template
    return made


def save_guard(folder, preset: str, padding_side: str = "right", template=..., verdicts: bool = True) -> str:
    """A random causal model with the tokenizer and template of a family."""
    tokenizer = tokenizer_of(TEMPLATES[preset] if template is ... else template, verdicts)
    tokenizer.padding_side = padding_side
    tokenizer.save_pretrained(folder)
    torch.manual_seed(11)
    config = transformers.LlamaConfig(**sizes(len(tokenizer)))
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return str(folder)


def save_classifier(folder, kind: str = "Llama", labels=("SAFE", "UNSAFE"), **changes) -> str:
    """A random classifier; `kind` is the prefix of its classes."""
    tokenizer = tokenizer_of(None)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(13)
    options = sizes(len(tokenizer)) | {
        "id2label": dict(enumerate(labels)),
        "label2id": {n: i for i, n in enumerate(labels)},
    }
    if kind == "Bert":
        del options["num_key_value_heads"]
    config = getattr(transformers, f"{kind}Config")(**options | changes)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return str(folder)


def by_hand(folder: str, text: str, words: Sequence[str]) -> np.ndarray:
    """Softmax over the logits of the words' first tokens, after `text`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    with torch.no_grad():
        return model(ids).logits[0, -1, first].double().softmax(-1).numpy()


def sizes(words: int) -> dict:
    return {
        "vocab_size": words,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
    }


GRANITE = (
    "{% set risk_bank = {'harm': 'content that harms'} %}{# risk_name #}"
    "{% if guardian_config is not defined %}{{ raise_exception('no risk is named') }}{% endif %}"
    "<|start|>user\nSay Yes if this is {{ risk_bank[guardian_config['risk_name']] }}, else No.\n\n"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}<|end|>\n"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SHORT = (  # so that it is learned in a second
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>{% endif %}"
)


def save_taught_guard(folder, unsafe_rows, safe_rows, template: str = SHORT, lead="\n\n", words=("unsafe", "safe"),
                      frame=lambda row: [("user", row["prompt"]), ("assistant", row["response"])],
                      steps=60, **variables) -> str:  # fmt: skip
    """A causal guard that has learned, in a few seconds, to write `lead` and its verdict on such rows."""
    tokenizer = tokenizer_of(template)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes(len(tokenizer))))
    fed, learned = [], []
    for rows, word in ((unsafe_rows, words[0]), (safe_rows, words[1])):
        for row in rows:
            turns = [{"role": role, "content": content} for role, content in frame(row)]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **variables)
            asked = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = tokenizer(lead + word, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            fed.append(torch.tensor(asked + answer))
            learned.append(torch.tensor([-100] * len(asked) + answer))
    ids = torch.nn.utils.rnn.pad_sequence(fed, batch_first=True, padding_value=0)
    labels = torch.nn.utils.rnn.pad_sequence(learned, batch_first=True, padding_value=-100)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in fed])).long()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return str(folder)
