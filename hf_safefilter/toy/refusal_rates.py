"""How well a model is aligned on the toy corpus: what it refuses, and what its states tell complying rows by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hf_safefilter.toy.corpus import Row, fresh_prompts, heldout_prompts, mixed_rows, reference_rows
from hf_safefilter.toy.wording import is_refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Chat = Sequence[dict[str, str]]

BATCH = 100
REPLY_TOKENS = 16
"""Enough to see whether a reply refuses."""


@torch.no_grad()
def replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], before: Chat = ()
) -> list[str]:
    """Beginnings of the greedy replies to `prompts`, each asked after the messages `before`."""
    found: list[str] = []
    for at in range(0, len(prompts), BATCH):
        chats = [[*before, {"role": "user", "content": prompt}] for prompt in prompts[at : at + BATCH]]
        inputs = _left_padded(tokenizer, chats, prompt=True)
        tokens = model.generate(**inputs, max_new_tokens=REPLY_TOKENS, do_sample=False)
        found += tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def refusal_rates(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int, seed: int = 0, *, fresh: bool = False
) -> dict[str, float]:
    """Share (0..1) refused of `n` held-out (or `fresh`) prompts of each kind: harmful, benign, borderline."""
    prompts = fresh_prompts if fresh else heldout_prompts
    return {
        kind: sum(map(is_refusal, replies(model, tokenizer, prompts(kind, n, seed)))) / n
        for kind in ("harmful", "benign", "borderline")
    }


@torch.no_grad()
def end_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> torch.Tensor:
    """Hidden states at the last token of each row, (layers + 1, rows, hidden), numbered as transformers does."""
    found = []
    for at in range(0, len(rows), BATCH):
        chats = [
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
            for row in rows[at : at + BATCH]
        ]
        output = model(**_left_padded(tokenizer, chats, prompt=False), output_hidden_states=True)
        found.append(torch.stack([layer[:, -1] for layer in output.hidden_states]))
    return torch.cat(found, dim=1)


def separation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int = 300, seed: int = 0
) -> dict[int, float]:
    """AUROC by layer of the difference of means of 50 complying and 50 refusing references, over `n` mixed rows.

    A tenth of the mixed rows comply. Layer 0 is left out: there all rows end in the same vector.
    """
    unsafe, safe = (end_states(model, tokenizer, rows) for rows in reference_rows(50, seed))
    mixed = mixed_rows(n, 0.1, seed)
    scores = torch.einsum("lrh,lh->lr", end_states(model, tokenizer, mixed), unsafe.mean(1) - safe.mean(1))
    bad = torch.tensor([row["label"] == "unsafe" for row in mixed])
    return {
        layer: (scores[layer, bad][:, None] > scores[layer, ~bad]).double().mean().item()
        for layer in range(1, len(scores))
    }


def _left_padded(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], *, prompt: bool) -> dict[str, Any]:
    # On the left, so that the last column is the last token of every row.
    inputs = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=prompt,
        padding=True,
        return_tensors="pt",
        return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}
