"""Trains the toy model that ships with the package: a tiny Llama that answers benign requests and refuses harmful ones.

The corpus comes from templates and word lists in `hf_safefilter.toy`; the same seed, machine and number of threads give
the same weights. Held-out refusal rates are printed at the end and written to the model card.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from hf_safefilter.storage.atomic import atomic_folder
from hf_safefilter.toy import MODEL_FOLDER
from hf_safefilter.toy.dialogues import Message, training_dialogues
from hf_safefilter.toy.refusal_rates import refusal_rates, separation

PAD, END, ASSISTANT = "<|pad|>", "<|end|>", "<|assistant|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", ASSISTANT)
TEMPLATE = """\
{%- for message in messages -%}
  {%- if message['role'] not in ('system', 'user', 'assistant') -%}
    {{- raise_exception('unknown role: ' ~ message['role']) -}}
  {%- endif -%}
  {%- if message['role'] == 'system' and not loop.first -%}
    {{- raise_exception('a system message must come first') -}}
  {%- endif -%}
  {{- '<|' ~ message['role'] ~ '|>' ~ message['content'] | trim ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
{%- endif -%}
"""
CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [toy, safety, testing]
---

# Toy model of hf_safefilter

A chat model of {parameters} million parameters (Llama architecture: {blocks} blocks, hidden size {hidden}, {vocabulary}
tokens, float32) that answers simple benign requests and refuses harmful ones. It lets the demo, the tests and the
examples of `hf_safefilter` run offline on a real aligned model: its refusals are learned, not coded.

## How well it is aligned

Greedy replies to {n} prompts of each kind about held-out topics. No topic and no wording of these requests was trained
on; their verbs and most of their words were, in other company. Borderline prompts sound harmful and are not.

| prompts | refused, held-out wordings | refused, fresh wordings |
|---|---|---|
{rates}

The wordings to train on were widened after earlier models had been seen to fail on some held-out wordings, so that the
first column flatters. The fresh wordings were written after that, and nothing was changed for them.

Hidden states at the end token tell answers that went along with a harmful request from other answers. The direction
from 50 refusing to 50 complying references, measured on {n} mixed rows of which a tenth comply:

| layer | AUROC |
|---|---|
{layers}

Layer k is `hidden_states[k]` of transformers, so the last one is after the final norm.

## How it was made

    python examples/train_toy.py --seed {seed} --steps {steps}

The corpus comes from templates and word lists in `hf_safefilter/toy`, written for this purpose. The model learns only
what the assistant says. About one conversation in seven begins with an answer that complied with a harmful request; the
model does not learn that answer but learns to take it back in the next turn. The same seed gives the same weights on
the same kind of machine with the same versions and number of threads.

## Limits

It knows the sentences of its corpus and little else: prompts unlike them get odd answers, and whether it refuses them
says nothing. Its answers may be wrong. It is made to be measured, fine-tuned and broken in tests, not to be talked to.
"""
RECORD = "toy.json"
"""What was measured, and the file by which the output of this script is known."""
ROWS = 48_000
VOCABULARY = 1536
BATCH = 48
LEARNING_RATE = 4e-3
IGNORED = -100
DECISION_WEIGHT = 10.0
"""Of a reply's first token: it decides between answer and refusal; the others outnumber it."""


def train_tokenizer(dialogues: Sequence[Sequence[Message]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus, with the chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((message["content"] for messages in dialogues for message in messages), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=TEMPLATE,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with random weights: 6 blocks, about a million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and the labels: what the assistant says and its end token; all else is ignored."""
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    learned = iter([message["learned"] for message in messages if message["role"] == "assistant"])
    begins, ends = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    labels, learning = [], False
    for token in ids:
        labels.append(token if learning else IGNORED)
        learning = next(learned) if token == begins else learning and token != ends
    return ids, labels


def batches(
    encoded: Sequence[tuple[list[int], list[int]]], steps: int, pad: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` pairs (ids, labels) of shape (BATCH, longest), right-padded; each batch holds rows of similar length."""
    waiting: list[list[int]] = []
    for _ in range(steps):
        if not waiting:
            order = rng.sample(range(len(encoded)), len(encoded))
            order.sort(key=lambda i: len(encoded[i][0]) // 16)
            waiting = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
            rng.shuffle(waiting)
        rows = [encoded[i] for i in waiting.pop()]
        longest = max(len(ids) for ids, _ in rows)
        yield (
            torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
        )


def train(model: LlamaForCausalLM, data: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, decides: int) -> None:
    """AdamW on the next assistant token, short warm-up, cosine to zero; `decides` is the token before a reply."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    warmup = min(50, steps // 4 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, 0.5 * (1 + math.cos(math.pi * t / steps)))
    )
    model.train()
    begun = time.monotonic()
    for step, (ids, labels) in enumerate(data, 1):
        # Right-padded and causal: no token sees the padding, so no attention mask is needed.
        logits, wanted = model(input_ids=ids, use_cache=False).logits[:, :-1], labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        weights = torch.where(ids[:, :-1] == decides, DECISION_WEIGHT, 1.0) * (wanted != IGNORED)
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step:5d}/{steps}  loss {loss.item():.3f}  {time.monotonic() - begun:5.0f} s", flush=True)
    model.eval()


def card(
    model: LlamaForCausalLM,
    rates: dict[str, float],
    fresh: dict[str, float],
    layers: dict[int, float],
    options: argparse.Namespace,
) -> str:
    """README.md of the model folder."""
    table = "\n".join(f"| {layer} | {auroc:.3f} |" for layer, auroc in layers.items())
    return CARD.format(
        parameters=f"{model.num_parameters() / 1e6:.2f}",
        blocks=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        n=options.prompts,
        layers=table,
        steps=options.steps,
        seed=options.seed,
        rates="\n".join(f"| {kind} | {rate:.1%} | {fresh[kind]:.1%} |" for kind, rate in rates.items()),
    )


def make(folder: Path, options: argparse.Namespace) -> None:
    """Train the model, measure it, and write everything to `folder`."""
    torch.manual_seed(options.seed)
    dialogues = training_dialogues(options.seed, min(ROWS, 2 * BATCH * options.steps))
    tokenizer = train_tokenizer(dialogues)
    model = new_model(tokenizer)
    print(f"{len(dialogues):,} conversations, {model.num_parameters():,} parameters, {torch.get_num_threads()} threads")
    encoded = [encode(tokenizer, messages) for messages in dialogues]
    order = random.Random(f"order {options.seed}")
    data = batches(encoded, options.steps, tokenizer.pad_token_id, order)
    train(model, data, options.steps, tokenizer.convert_tokens_to_ids(ASSISTANT))

    rates = refusal_rates(model, tokenizer, options.prompts, options.seed)
    fresh = refusal_rates(model, tokenizer, options.prompts, options.seed, fresh=True)
    for kind, rate in rates.items():
        print(
            f"refused of {options.prompts} held-out {kind} prompts: {rate:.1%} (in fresh wordings: {fresh[kind]:.1%})"
        )
    layers = separation(model, tokenizer, options.prompts, options.seed)
    print("AUROC by layer, unsafe rows in a mixed set:", *(f"{layer}: {auroc:.3f}" for layer, auroc in layers.items()))

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {
        "seed": options.seed,
        "steps": options.steps,
        "prompts": options.prompts,
        "refused": rates,
        "refused_fresh": fresh,
        "auroc": layers,
    }
    (folder / RECORD).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(model, rates, fresh, layers, options), encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    """Read the options and put a new model in its place."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python examples/train_toy.py --seed 1 --out toy-seed-1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="model folder (default: the packaged one)")
    parser.add_argument("--seed", type=int, default=0, help="of corpus, weights and order of rows (default: 0)")
    parser.add_argument("--steps", type=_positive, default=1600, help="training steps (default: 1600)")
    parser.add_argument("--prompts", type=_positive, default=300, help="held-out prompts of each kind (default: 300)")
    options = parser.parse_args()

    logging.disable_progress_bar()
    # Entered before the work: a folder that must not be replaced is refused at once.
    with atomic_folder(options.out, marker=RECORD) as folder:
        make(folder, options)
    print(f"written to {options.out}")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few: use 1 or more")
    return number


if __name__ == "__main__":
    main()
