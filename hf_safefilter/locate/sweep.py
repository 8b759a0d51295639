"""What a model replies under many scalings of its blocks, each computed from what it shares with the model as it is.

Blocks below the lowest scaled one never change, so for the prompts, and for a reply as long as it is the unscaled one,
their states are computed once and kept. What the unscaled model replied serves as a draft: one pass over prompt and
draft shows for every row how far the scaled model says the same; only rows that part from it are written on, token by
token, and a row stops as soon as it is known whether it refuses. Prompts share the pass over their common beginning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hf_safefilter.errors import ModelError
from hf_safefilter.locate.journal import Journal
from hf_safefilter.locate.refusals import RefusalMatcher, Verdict, verdicts
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.generate import (
    end_tokens,
    evaluating,
    fit_threads,
    left_padded,
    pad_token,
    replies,
    require_room,
)
from hf_safefilter.model.scaled import PROJECTIONS, scaled
from hf_safefilter.model.tokens import tokenise_prompts

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from hf_safefilter.locate.refusals import Judge

logger = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30
"""Keys and values kept at once; more prompts than fit are worked on in turn."""

_MOST_ROWS = 128  # a batch beyond this gains no speed
_LOGITS = 1 << 25  # numbers of logits at once
_THIN = 0.75  # a batch is thinned out when fewer of its rows are still being written


@dataclass(frozen=True, slots=True)
class Cell:
    """One scaling: some blocks times a factor; no blocks: the model as it is."""

    blocks: tuple[int, ...] = ()
    by: float = 1.0


class _Stop(Exception):
    """The states asked for have been seen: nothing further down the model need run."""


@dataclass(slots=True)
class _Chunk:
    """Prompts that are worked on together: common beginning, the rest padded on its left, the draft on its right.

    Attributes:
        rows: their numbers.
        prefix: ids of the common beginning, int64 (1, P); P may be 0.
        rest: ids of the remainder, int64 (n, S).
        rest_mask: 1 where `rest` is a token.
        draft: what the unscaled model replies, int64 (n, M).
        lengths: tokens of each draft.
        kept: keys and values of every block for all of these, as the unscaled model has them.
        at: the block whose inputs `states` are: for prefix and for rest with draft.
    """

    rows: list[int]
    prefix: torch.Tensor
    rest: torch.Tensor
    rest_mask: torch.Tensor
    draft: torch.Tensor | None = None
    lengths: list[int] = field(default_factory=list)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    at: int = 0
    states: tuple[torch.Tensor | None, torch.Tensor] | None = None


class Sweep:
    """Verdicts on a model's replies to fixed prompts, under any scalings.

    Args:
        model: with its language-model head.
        tokenizer: of the model.
        prompts: one user turn each.
        judge: says what a reply is.
        max_new_tokens: where replies are cut.
        chat_template: for a model that has none.
        parts: which projections are scaled.
        cache_bytes: keys and values kept at once.

    Raises:
        DataError: a prompt that cannot be asked.
        ModelError: no blocks found, or no language-model head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        judge: RefusalMatcher | Judge,
        *,
        max_new_tokens: int = 32,
        chat_template: str | None = None,
        parts: Sequence[str] = PROJECTIONS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.model, self.tokenizer, self.prompts, self.judge = model, tokenizer, list(prompts), judge
        self.new, self.parts, self._template = max_new_tokens, tuple(parts), chat_template
        self.ids = tokenise_prompts(tokenizer, self.prompts, chat_template=chat_template)
        require_room(model, self.ids, max_new_tokens)
        stack, self._head = find_blocks(model), model.get_output_embeddings()
        self.blocks, self._base = stack.blocks, model.get_submodule(stack.name.rpartition(".")[0])
        self._tuples = False  # whether blocks put out tuples
        if self._head is None:
            no = f"{type(model).__name__} has no language-model head"
            raise ModelError(no, fix="load it with AutoModelForCausalLM; or use the angular gap: method='gap'")
        self._ends, self._pad = set(end_tokens(model)), pad_token(model)
        self._cache_bytes = cache_bytes
        self._known: dict[tuple[int, ...], Verdict | None] = {}
        longest = max(map(len, self.ids), default=0) + 2 * max_new_tokens
        self.shares = _sees_all(model, longest)
        if not self.shares:
            logger.warning("%s does not keep all keys and values: replies are generated whole", type(model).__name__)

    def run(
        self, cells: Sequence[Cell], journal: Journal | None = None, done: Callable[[int], None] = lambda rows: None
    ) -> dict[Cell, list[Verdict]]:
        """The verdict on every prompt's reply under every cell.

        Args:
            cells: scalings; the order does not matter.
            journal: what was found is kept there, and what it holds already is not computed again.
            done: called with the number of rows that a cell has been done for.
        """
        journal = journal or Journal(None, {})
        ordered = sorted(set(cells), key=lambda cell: (min(cell.blocks, default=0), cell.blocks, cell.by))
        with evaluating(self.model), fit_threads(self.model), torch.inference_mode():
            for rows in self._chunks():
                chunk: _Chunk | None = None
                for cell in ordered:
                    if not journal.holds(cell.blocks, cell.by, rows):
                        if self.shares and chunk is None:
                            chunk = self._drafted(rows)
                        found = self._shared(chunk, cell) if self.shares else self._whole(rows, cell)
                        journal.add(cell.blocks, cell.by, rows, found)
                    done(len(rows))
        everyone = range(len(self.prompts))
        return {cell: journal.read(cell.blocks, cell.by, everyone) for cell in cells}

    def _chunks(self) -> list[list[int]]:
        """Rows of like length together, as many as fit the budget for keys and values."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = next(self.model.parameters()).element_size()
        token = 2 * len(self.blocks) * heads * width * size * 2  # kept, and those of the cell at work
        chunks: list[list[int]] = []
        for row in sorted(range(len(self.ids)), key=lambda row: (-len(self.ids[row]), row)):
            fits = chunks and (len(chunks[-1]) + 1) * (len(self.ids[chunks[-1][0]]) + 2 * self.new) * token
            if chunks and len(chunks[-1]) < _MOST_ROWS and fits <= self._cache_bytes:
                chunks[-1].append(row)
            else:
                chunks.append([row])
        return chunks

    def _whole(self, rows: list[int], cell: Cell) -> list[Verdict]:
        prompts = [self.prompts[row] for row in rows]
        with scaled(self.model, cell.blocks, cell.by, self.parts) if cell.blocks else nullcontext():
            said = replies(self.model, self.tokenizer, prompts, max_new_tokens=self.new, chat_template=self._template)
        return verdicts(self.judge, prompts, said)

    # The unscaled model: its replies are the drafts, its keys, values and states are what the cells share.

    def _drafted(self, rows: list[int]) -> _Chunk:
        device = self.model.device
        common = len(commonprefix([self.ids[row].tolist() for row in rows]))
        common = min(common, min(len(self.ids[row]) for row in rows) - 1)
        prefix = torch.from_numpy(self.ids[rows[0]][:common].astype(np.int64))[None].to(device)
        rest, mask = (part.to(device) for part in left_padded([self.ids[row][common:] for row in rows], self._pad))
        chunk = _Chunk(rows, prefix, rest, mask)
        tokens = self._written(chunk, Cell())
        chunk.lengths = [len(one) for one in tokens]
        draft = np.full((len(rows), max(chunk.lengths)), self._pad, np.int64)
        for row, one in enumerate(tokens):
            draft[row, : len(one)] = one
        chunk.draft = torch.from_numpy(draft).to(device)
        kinds: list[type] = []
        with self.blocks[0].register_forward_hook(lambda block, args, out: kinds.append(type(out))):
            cache, _ = self._read(chunk, 0)
        self._tuples = issubclass(kinds[0], tuple)
        chunk.kept = [(layer.keys, layer.values) for layer in cache.layers]
        return chunk

    def _advance(self, chunk: _Chunk, block: int) -> None:
        """Move the states of a chunk on to the inputs of `block`."""
        if chunk.states is not None and chunk.at > block:
            chunk.states, chunk.at = None, 0
        if chunk.at == block:
            return
        seen: list[torch.Tensor] = []

        def see(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _Stop

        with self.blocks[block].register_forward_pre_hook(see, with_kwargs=True):
            self._read(chunk, chunk.at)
        chunk.states, chunk.at = (seen[0] if len(seen) > 1 else None, seen[-1]), block

    # One cell.

    def _shared(self, chunk: _Chunk, cell: Cell) -> list[Verdict]:
        if cell.blocks:
            self._advance(chunk, min(cell.blocks))
            with scaled(self.model, cell.blocks, cell.by, self.parts):
                tokens = self._written(chunk, cell)
        else:
            tokens = [chunk.draft[row, :length].tolist() for row, length in enumerate(chunk.lengths)]
        if isinstance(self.judge, RefusalMatcher):
            return [self._verdict(one, True) for one in tokens]
        prompts = [self.prompts[row] for row in chunk.rows]
        return verdicts(self.judge, prompts, self.tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def _written(self, chunk: _Chunk, cell: Cell) -> list[list[int]]:
        """The tokens of every row's reply, up to where it is decided."""
        first = min(cell.blocks, default=0)
        cache, hidden = self._read(chunk, first)
        drafted = 0 if chunk.draft is None else chunk.draft.shape[1]
        likeliest = self._likeliest(hidden[:, chunk.rest.shape[1] - 1 :])
        tokens: list[list[int]] = []
        following = []
        for row in range(len(chunk.rows)):
            length = chunk.lengths[row] if drafted else 0
            said = likeliest[row]
            same = 0
            while same < length and said[same] == int(chunk.draft[row, same]):
                same += 1
            tokens.append([int(token) for token in chunk.draft[row, :same]] if drafted else [])
            if same < length or not drafted:
                tokens[row].append(int(said[same]))
                if not self._decided(tokens[row]):
                    following.append(row)
        if following:
            self._write_on(chunk, cache, tokens, following)
        return tokens

    def _write_on(self, chunk: _Chunk, cache: Cache, tokens: list[list[int]], rows: list[int]) -> None:
        """Write token after token of the rows whose last token has not been read yet."""
        device = chunk.rest.device
        lower = chunk.kept[: len(chunk.kept) if chunk.draft is None else chunk.at]
        for layer, (keys, values) in zip(cache.layers, lower, strict=False):
            layer.keys, layer.values = keys, values
        drafted = 0 if chunk.draft is None else chunk.draft.shape[1]
        accepted = torch.tensor([len(tokens[row]) - 1 for row in range(len(tokens))], device=device)
        mask = torch.cat(
            [
                torch.ones(len(tokens), chunk.prefix.shape[1], dtype=torch.long, device=device),
                chunk.rest_mask,
                (torch.arange(drafted, device=device) < accepted[:, None]).long(),
            ],
            dim=1,
        )
        place = mask.sum(1)
        batch = list(range(len(tokens)))
        while rows:
            if len(rows) <= _THIN * len(batch):
                keep = torch.tensor([batch.index(row) for row in rows], device=device)
                cache.batch_select_indices(keep)
                mask, place, batch = mask[keep], place[keep], rows
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            last = torch.tensor([[tokens[row][-1]] for row in batch], device=device)
            hidden = self._forward(last, mask, place[:, None], cache)
            place = place + 1
            said = self._likeliest(hidden)[:, 0]
            still = set(rows)
            for number, row in enumerate(batch):
                if row in still:
                    tokens[row].append(int(said[number]))
            rows = [row for row in rows if not self._decided(tokens[row])]

    def _read(self, chunk: _Chunk, first: int) -> tuple[Cache, torch.Tensor]:
        """One pass over prompts and drafts from block `first` on: keys and values, and final states `(n, S+M, d)`."""
        from transformers import DynamicCache

        n, common = len(chunk.rows), chunk.prefix.shape[1]
        cache = DynamicCache()
        states = chunk.states if first else None
        device = chunk.rest.device
        if common:
            everywhere = torch.arange(common, device=device)[None]
            with suppress(_Stop):
                ones = torch.ones_like(chunk.prefix)
                self._forward(chunk.prefix, ones, everywhere, cache, first, states and states[0])
            for block in range(first):  # what reads the cache's length, reads it off the lowest block
                keys, values = chunk.kept[block]
                cache.update(keys[:1, :, :common], values[:1, :, :common], block)
            for layer in cache.layers:
                if layer.is_initialized:
                    layer.keys = layer.keys.expand(n, -1, -1, -1)
                    layer.values = layer.values.expand(n, -1, -1, -1)
        ids, mask = chunk.rest, chunk.rest_mask
        if chunk.draft is not None:
            drafted = (
                torch.arange(chunk.draft.shape[1], device=device) < torch.tensor(chunk.lengths, device=device)[:, None]
            )
            ids, mask = torch.cat([ids, chunk.draft], 1), torch.cat([mask, drafted.long()], 1)
        place = common + (mask.cumsum(1) - 1).clamp(min=0)
        whole = torch.cat([torch.ones(n, common, dtype=torch.long, device=device), mask], 1)
        hidden = torch.empty(0)
        with suppress(_Stop):
            hidden = self._forward(ids, whole, place, cache, first, states and states[1])
        return cache, hidden

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        place: torch.Tensor,
        cache: Cache,
        first: int = 0,
        states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with _starting_at(self.blocks, first, (states, None) if self._tuples else states):
            return self._base(
                input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
            ).last_hidden_state

    def _likeliest(self, hidden: torch.Tensor) -> np.ndarray:
        """The likeliest next token at each position, int64 `(n, positions)`."""
        flat = hidden.flatten(0, 1)
        step = max(1, _LOGITS // self._head.weight.shape[0])
        parts = [self._head(flat[at : at + step]).argmax(-1) for at in range(0, len(flat), step)]
        return torch.cat(parts).view(hidden.shape[:2]).numpy(force=True)

    def _decided(self, tokens: list[int]) -> bool:
        finished = len(tokens) >= self.new or tokens[-1] in self._ends
        return finished or self._verdict(tokens, False) is not None

    def _verdict(self, tokens: list[int], finished: bool) -> Verdict | None:
        if not isinstance(self.judge, RefusalMatcher):
            return None
        key = (finished, *tokens)  # many cells say the same
        if key not in self._known:
            if len(self._known) > 1_000_000:
                self._known.clear()
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            self._known[key] = self.judge.verdict(text, finished=finished)
        return self._known[key]


@contextmanager
def _starting_at(blocks: nn.ModuleList, first: int, states: Any) -> Iterator[None]:
    """Let the forward start with `states` as the input of block `first`: all that the blocks below put out."""
    if not first:
        yield
        return
    lower = list(blocks[:first])
    before = [block.__dict__.get("forward") for block in lower]
    for block in lower:
        block.forward = lambda *args, **kwargs: states
    try:
        yield
    finally:
        for block, own in zip(lower, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


def _sees_all(model: PreTrainedModel, length: int) -> bool:
    """Whether each block keeps keys and values of its own and sees all of a text of `length` tokens.

    Rejected drafts leave gaps, which a sliding window would count as distance.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    config = model.config.get_text_config()
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return False
        if layer.is_sliding and length >= layer.sliding_window:
            return False
    return not getattr(config, "num_kv_shared_layers", 0) and find_blocks(model).causal
