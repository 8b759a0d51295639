"""Greedy replies of a model to prompts, in batches: the likeliest token each time, so nothing is left to chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from hf_safefilter.checks import require_whole
from hf_safefilter.errors import DataError
from hf_safefilter.model.threads import pick_threads, threads
from hf_safefilter.model.tokens import tokenise_prompts

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


_BAR_AFTER = 3  # seconds; shorter work needs no progress bar


def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    chat_template: str | None = None,
    batch: int = 32,
) -> list[str]:
    """Greedy replies without special tokens, in the order of the prompts.

    The likeliest token is taken, whatever sampling or penalties the model's own generation settings hold; of these
    settings only the end tokens are used.

    Args:
        model: Causal language model, possibly wrapped by PEFT; its training mode is restored afterwards.
        tokenizer: The tokenizer of that model.
        prompts: One user turn each.
        max_new_tokens: Largest number of tokens that a reply may have.
        chat_template: For a model without a chat template: a Jinja template, or "plain".
        batch: Number of prompts that are answered at once.

    Raises:
        DataError: A prompt cannot be rendered or encoded, or leaves no room for a reply.
        OptionError: `max_new_tokens` or `batch` is not a whole number of at least 1.
    """
    from datasets.utils import tqdm
    from transformers import GenerationConfig

    require_whole("max_new_tokens", max_new_tokens, least=1)
    require_whole("batch", batch, least=1)
    ids = tokenise_prompts(tokenizer, prompts, chat_template=chat_template)
    require_room(model, ids, max_new_tokens)
    pad = pad_token(model)
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=end_tokens(model), pad_token_id=pad
    )
    texts = [""] * len(ids)
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    bar = tqdm(total=len(ids), desc="Reply", unit=" prompts", leave=False, delay=_BAR_AFTER)
    with evaluating(model), _settings(model, greedy), fit_threads(model), torch.inference_mode(), bar:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            tokens, mask = left_padded([ids[row] for row in rows], pad)
            output = _generated(model, tokens, mask, greedy)[:, tokens.shape[1] :]
            for row, text in zip(rows, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
                texts[row] = text
            bar.update(len(rows))
    return texts


def _generated(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, config: GenerationConfig
) -> torch.Tensor:
    # `generate` comes from a mixin of the classes with a head, which `PreTrainedModel` does not declare.
    generate = cast("Callable[..., torch.Tensor]", model.generate)
    return generate(input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), generation_config=config)


def fit_threads(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Inside the block, the number of threads suits the model's width if it runs on a CPU."""
    most = torch.get_num_threads()
    width = model.config.get_text_config().hidden_size
    return threads(pick_threads(width, most) if model.device.type == "cpu" else most)


def left_padded(rows: Sequence[np.ndarray], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 `(n, longest)`, padded on the left: every row ends in the last column."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, values in enumerate(rows):
        ids[row, longest - len(values) :] = torch.from_numpy(np.asarray(values, np.int64))
        mask[row, longest - len(values) :] = 1
    return ids, mask


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids of the tokens that end a reply, as named by the model's generation settings or its configuration."""
    for settings in (model.generation_config, model.config.get_text_config()):
        ends = getattr(settings, "eos_token_id", None)
        if ends is not None:
            return [ends] if isinstance(ends, int) else list(ends)
    return []


def pad_token(model: PreTrainedModel) -> int:
    """A token id to pad rows with; it is masked, so any id will do."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else next(iter(end_tokens(model)), 0)


def require_room(model: PreTrainedModel, ids: Sequence[np.ndarray], new: int) -> None:
    """Raise unless every prompt leaves room for `new` tokens within the longest text that the model supports.

    Raises:
        DataError: The longest prompt is too long.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(range(len(ids)), key=lambda row: len(ids[row]), default=None)
    if most is not None and longest is not None and len(ids[longest]) + new > most:
        raise DataError(
            f"prompt {longest} has {len(ids[longest])} tokens and leaves no room for a reply of {new}",
            found=f"the model supports {most} tokens",
            fix="shorten or remove the prompt",
        )


@contextmanager
def _settings(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    # Settings passed to generate() are merged with the model's own, penalties included.
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model is in evaluation mode, without dropout; its former mode is restored afterwards."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
