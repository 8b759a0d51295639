"""Greedy replies of a model to prompts, in batches: what it would say with all chance taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.model.threads import pick_threads, threads
from hf_safefilter.model.tokens import tokenise_prompts

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


_SOON = 3  # seconds: what takes no longer needs no bar


def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    chat_template: str | None = None,
    batch: int = 32,
) -> list[str]:
    """Greedy replies, special tokens left out, in the order of the prompts.

    Whatever sampling or penalties the model's own generation settings hold, the likeliest token is taken; only its end
    tokens are heeded.

    Args:
        model: a causal language model, also one wrapped by PEFT; its training mode is restored afterwards.
        tokenizer: of that model.
        prompts: one user turn each.
        max_new_tokens: where a reply is cut.
        chat_template: for a model that has none: a Jinja template, or "plain".
        batch: prompts at once.

    Raises:
        DataError: a prompt that cannot be asked, or that leaves no room for a reply.
        OptionError: a number below 1.
    """
    from datasets.utils import tqdm
    from transformers import GenerationConfig

    if max_new_tokens < 1 or batch < 1:
        raise OptionError(f"max_new_tokens={max_new_tokens}, batch={batch}: neither may be below 1", fix="raise it")
    ids = tokenise_prompts(tokenizer, prompts, chat_template=chat_template)
    require_room(model, ids, max_new_tokens)
    pad = pad_token(model)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=end_tokens(model), pad_token_id=pad
    )
    found = [""] * len(ids)
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    bar = tqdm(total=len(ids), desc="Reply", unit=" prompts", leave=False, delay=_SOON)
    with evaluating(model), _settings(model, greedy), fit_threads(model), torch.inference_mode(), bar:
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            tokens, mask = left_padded([ids[row] for row in rows], pad)
            device = model.device
            out = model.generate(input_ids=tokens.to(device), attention_mask=mask.to(device), generation_config=greedy)
            texts = tokenizer.batch_decode(out[:, tokens.shape[1] :], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                found[row] = text
            bar.update(len(rows))
    return found


def fit_threads(model: PreTrainedModel) -> AbstractContextManager[None]:
    """As many threads as suit the model's width while it runs on a CPU."""
    most = torch.get_num_threads()
    width = model.config.get_text_config().hidden_size
    return threads(pick_threads(width, most) if model.device.type == "cpu" else most)


def left_padded(rows: Sequence[np.ndarray], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 `(n, longest)`, padded on the left, so that the last column is every row's last."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, values in enumerate(rows):
        ids[row, longest - len(values) :] = torch.from_numpy(np.asarray(values, np.int64))
        mask[row, longest - len(values) :] = 1
    return ids, mask


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids of the tokens that end a reply, as the model's generation settings or its configuration name them."""
    for settings in (model.generation_config, model.config.get_text_config()):
        ends = getattr(settings, "eos_token_id", None)
        if ends is not None:
            return [ends] if isinstance(ends, int) else list(ends)
    return []


def pad_token(model: PreTrainedModel) -> int:
    """An id to fill rows up with; it is masked, so any will do."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else next(iter(end_tokens(model)), 0)


def require_room(model: PreTrainedModel, ids: Sequence[np.ndarray], new: int) -> None:
    """Raise unless every prompt leaves room for `new` tokens in the longest text that the model takes."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(range(len(ids)), key=lambda row: len(ids[row]), default=None)
    if most is not None and longest is not None and len(ids[longest]) + new > most:
        raise DataError(
            f"prompt {longest} has {len(ids[longest])} tokens and leaves no room for a reply of {new}",
            found=f"the model takes {most}",
            fix="shorten or remove it",
        )


@contextmanager
def _settings(model: PreTrainedModel, ours: GenerationConfig) -> Iterator[None]:
    # Handed to generate() they would be mixed with the model's own, penalties and all.
    before = model.generation_config
    model.generation_config = ours
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside the block; the mode of before comes back after it."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
