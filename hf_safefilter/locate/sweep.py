"""Replies of a model under many scalings of its blocks, computed from what they share with the unscaled model.

Blocks below the lowest scaled one never change, so for the prompts, and for a reply as long as it equals the unscaled
one, their states are computed once and stored. The reply of the unscaled model serves as a draft: one pass over prompt
and draft shows for every row how far the scaled model agrees. Only rows that differ are generated further, token by
token, and a row ends as soon as its verdict is certain. Prompts share the pass over their common beginning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from hf_safefilter.errors import ModelError
from hf_safefilter.locate.journal import Journal
from hf_safefilter.locate.partial_forward import StopForward, cache_layers, caches_all_tokens, starting_at
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
"""Bytes of keys and values in memory at once; prompts that do not fit together are processed in turn."""

_MOST_ROWS = 128  # a larger batch gains no speed
_MOST_LOGITS = 1 << 25  # logits computed at once
_THIN = 0.75  # finished rows leave a batch when at most this share of its rows is unfinished


@dataclass(frozen=True, slots=True)
class Cell:
    """One scaling: some blocks times a factor; without blocks, the unscaled model."""

    blocks: tuple[int, ...] = ()
    by: float = 1.0


@dataclass(slots=True)
class _Chunk:
    """Prompts processed together: common beginning, remainder padded on the left, draft padded on the right.

    Attributes:
        rows: Indices of the prompts.
        prefix: Token ids of the common beginning, int64 (1, P); P may be 0.
        rest: Token ids of the remainder, int64 (n, S).
        rest_mask: 1 where `rest` is a token, else 0, int64 (n, S).
        draft: Reply of the unscaled model, int64 (n, M); M is 0 until it is generated.
        lengths: Number of tokens of each draft.
        cached: Keys and values of every block for all of these tokens in the unscaled model; empty without a draft.
        block: Block whose inputs `states` are.
        states: Inputs of that block for `prefix` (None if it is empty) and for `rest` with `draft`.
    """

    rows: list[int]
    prefix: torch.Tensor
    rest: torch.Tensor
    rest_mask: torch.Tensor
    draft: torch.Tensor
    lengths: list[int]
    cached: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    block: int = 0
    states: tuple[torch.Tensor | None, torch.Tensor] | None = None


class Sweep:
    """Verdicts on a model's replies to fixed prompts, under any scalings.

    Args:
        model: Model with its language-model head.
        tokenizer: Tokenizer of the model.
        prompts: Prompts of one user turn each.
        judge: Matcher or judge of the replies.
        max_new_tokens: Largest number of tokens of a reply.
        chat_template: Template for a model that has none.
        parts: Projections that are scaled, some of `PROJECTIONS`.
        cache_bytes: Bytes of keys and values in memory at once.

    Attributes:
        shares: Whether scalings share work; if not, every reply is generated as a whole.

    Raises:
        DataError: A prompt that cannot be asked.
        ModelError: No blocks found, or no language-model head.
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
        self.max_new_tokens, self.parts, self._template = max_new_tokens, tuple(parts), chat_template
        self.ids = tokenise_prompts(tokenizer, self.prompts, chat_template=chat_template)
        require_room(model, self.ids, max_new_tokens)
        stack = find_blocks(model)
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers has no types here
        if head is None:
            raise ModelError(
                f"{type(model).__name__} has no language-model head",
                fix='load it with AutoModelForCausalLM, or use the angular gap: `method="gap"`',
            )
        self.blocks, self._base = stack.blocks, model.get_submodule(stack.name.rpartition(".")[0])
        self._head: nn.Module = head
        self._vocabulary: int = head.weight.shape[0]
        self._returns_tuples = False  # whether the blocks return tuples; known after the first pass
        self._ends, self._pad = set(end_tokens(model)), pad_token(model)
        self._cache_bytes = cache_bytes
        self._verdicts: dict[tuple[int, ...], Verdict | None] = {}
        longest = max(map(len, self.ids), default=0) + 2 * max_new_tokens
        self.shares = caches_all_tokens(model, longest)
        if not self.shares:
            logger.warning("%s does not cache all keys and values: replies are generated whole", type(model).__name__)

    def run(
        self,
        cells: Sequence[Cell],
        journal: Journal | None = None,
        on_rows: Callable[[int], object] = lambda count: None,
    ) -> dict[Cell, list[Verdict]]:
        """The verdict on every prompt's reply under every scaling.

        Args:
            cells: Scalings, in any order.
            journal: Store of verdicts; those it holds already are not computed again.
            on_rows: Called with the number of prompts whenever a scaling is finished for them.
        """
        journal = journal or Journal(None, {})
        ordered = sorted(set(cells), key=lambda cell: (min(cell.blocks, default=0), cell.blocks, cell.by))
        with evaluating(self.model), fit_threads(self.model), torch.inference_mode():
            for rows in self._chunks():
                chunk: _Chunk | None = None
                for cell in ordered:
                    if not journal.holds(cell.blocks, cell.by, rows):
                        if self.shares and chunk is None:
                            chunk = self._draft(rows)
                        new_verdicts = self._whole(rows, cell) if chunk is None else self._shared(chunk, cell)
                        journal.add(cell.blocks, cell.by, rows, new_verdicts)
                    on_rows(len(rows))
        every_row = range(len(self.prompts))
        return {cell: journal.read(cell.blocks, cell.by, every_row) for cell in cells}

    def _chunks(self) -> list[list[int]]:
        """Rows of similar length together, as many as fit the budget for keys and values."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = next(self.model.parameters()).element_size()
        token = 2 * len(self.blocks) * heads * width * size * 2  # of the unscaled model, and of the current scaling
        chunks: list[list[int]] = []
        for row in sorted(range(len(self.ids)), key=lambda row: (-len(self.ids[row]), row)):
            if chunks and len(chunks[-1]) < _MOST_ROWS:
                longest = len(self.ids[chunks[-1][0]]) + 2 * self.max_new_tokens
                if (len(chunks[-1]) + 1) * longest * token <= self._cache_bytes:
                    chunks[-1].append(row)
                    continue
            chunks.append([row])
        return chunks

    def _whole(self, rows: list[int], cell: Cell) -> list[Verdict]:
        prompts = [self.prompts[row] for row in rows]
        with scaled(self.model, cell.blocks, cell.by, self.parts) if cell.blocks else nullcontext():
            texts = replies(
                self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, chat_template=self._template
            )
        return verdicts(self.judge, prompts, texts)

    # The unscaled model: its replies are the drafts; its keys, values and states are shared by all scalings.

    def _draft(self, rows: list[int]) -> _Chunk:
        device = self.model.device
        common = len(commonprefix([self.ids[row].tolist() for row in rows]))
        common = min(common, min(len(self.ids[row]) for row in rows) - 1)
        prefix = torch.from_numpy(self.ids[rows[0]][:common].astype(np.int64))[None].to(device)
        rest, mask = (part.to(device) for part in left_padded([self.ids[row][common:] for row in rows], self._pad))
        no_draft = torch.empty(len(rows), 0, dtype=torch.long, device=device)
        chunk = _Chunk(rows, prefix, rest, mask, no_draft, [0] * len(rows))
        tokens = self._generate(chunk, Cell())
        chunk.lengths = [len(reply) for reply in tokens]
        draft = np.full((len(rows), max(chunk.lengths)), self._pad, np.int64)
        for row, reply in enumerate(tokens):
            draft[row, : len(reply)] = reply
        chunk.draft = torch.from_numpy(draft).to(device)
        outputs: list[type] = []
        with self.blocks[0].register_forward_hook(lambda block, args, output: outputs.append(type(output))):
            cache, _ = self._read(chunk, 0)
        self._returns_tuples = issubclass(outputs[0], tuple)
        chunk.cached = [(layer.keys, layer.values) for layer in cache_layers(cache)]
        return chunk

    def _advance(self, chunk: _Chunk, block: int) -> None:
        """Replace the states of a chunk by the inputs of `block`."""
        if chunk.states is not None and chunk.block > block:
            chunk.states, chunk.block = None, 0
        if chunk.block == block:
            return
        inputs: list[torch.Tensor] = []

        def capture(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            inputs.append(args[0] if args else kwargs["hidden_states"])
            raise StopForward

        with self.blocks[block].register_forward_pre_hook(capture, with_kwargs=True):
            self._read(chunk, chunk.block)
        chunk.states, chunk.block = (inputs[0] if len(inputs) > 1 else None, inputs[-1]), block

    # One scaling.

    def _shared(self, chunk: _Chunk, cell: Cell) -> list[Verdict]:
        if cell.blocks:
            self._advance(chunk, min(cell.blocks))
            with scaled(self.model, cell.blocks, cell.by, self.parts):
                tokens = self._generate(chunk, cell)
        else:
            tokens = [chunk.draft[row, :length].tolist() for row, length in enumerate(chunk.lengths)]
        if isinstance(self.judge, RefusalMatcher):
            # a finished reply always has a verdict
            return [cast(Verdict, self._verdict(self.judge, reply, finished=True)) for reply in tokens]
        prompts = [self.prompts[row] for row in chunk.rows]
        return verdicts(self.judge, prompts, self.tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def _generate(self, chunk: _Chunk, cell: Cell) -> list[list[int]]:
        """The tokens of every row's reply, up to where its verdict is certain."""
        cache, hidden = self._read(chunk, min(cell.blocks, default=0))
        likeliest = self._likeliest(hidden[:, chunk.rest.shape[1] - 1 :])
        drafted = chunk.draft.shape[1] > 0
        tokens: list[list[int]] = []
        unfinished = []
        for row, length in enumerate(chunk.lengths):
            draft = chunk.draft[row, :length].tolist()
            same = next((at for at in range(length) if likeliest[row, at] != draft[at]), length)
            tokens.append(draft[:same])
            if same < length or not drafted:
                tokens[row].append(int(likeliest[row, same]))
                if not self._decided(tokens[row]):
                    unfinished.append(row)
        if unfinished:
            self._continue(chunk, cache, tokens, unfinished)
        return tokens

    def _continue(self, chunk: _Chunk, cache: Cache, tokens: list[list[int]], rows: list[int]) -> None:
        """Generate token after token of the rows whose last token is not in the cache yet."""
        device = chunk.rest.device
        for layer, (keys, values) in zip(cache_layers(cache), chunk.cached[: chunk.block], strict=False):
            layer.keys, layer.values = keys, values
        drafted = chunk.draft.shape[1]
        accepted = torch.tensor([len(tokens[row]) - 1 for row in range(len(tokens))], device=device)
        mask = torch.cat(
            [
                torch.ones(len(tokens), chunk.prefix.shape[1], dtype=torch.long, device=device),
                chunk.rest_mask,
                (torch.arange(drafted, device=device) < accepted[:, None]).long(),
            ],
            dim=1,
        )
        position = mask.sum(1)
        batch = list(range(len(tokens)))
        while rows:
            if len(rows) <= _THIN * len(batch):
                index = torch.tensor([batch.index(row) for row in rows], device=device)
                cache.batch_select_indices(index)
                mask, position, batch = mask[index], position[index], rows
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            last = torch.tensor([[tokens[row][-1]] for row in batch], device=device)
            hidden = self._forward(last, mask, position[:, None], cache)
            position = position + 1
            unfinished = set(rows)
            for row, token in zip(batch, self._likeliest(hidden)[:, 0].tolist(), strict=True):
                if row in unfinished:
                    tokens[row].append(token)
            rows = [row for row in rows if not self._decided(tokens[row])]

    def _read(self, chunk: _Chunk, first: int) -> tuple[Cache, torch.Tensor]:
        """Keys and values, and final states `(n, S+M, d)`, of one pass over prompts and drafts from block `first`."""
        from transformers import DynamicCache

        n, common = len(chunk.rows), chunk.prefix.shape[1]
        cache = DynamicCache()
        states = chunk.states if first else None
        device = chunk.rest.device
        if common:
            positions = torch.arange(common, device=device)[None]
            with suppress(StopForward):
                ones = torch.ones_like(chunk.prefix)
                self._forward(chunk.prefix, ones, positions, cache, first, states and states[0])
            for block in range(first):  # the length of the cache is that of its lowest block
                keys, values = chunk.cached[block]
                cache.update(keys[:1, :, :common], values[:1, :, :common], block)
            for layer in cache_layers(cache):
                if layer.is_initialized:
                    layer.keys = layer.keys.expand(n, -1, -1, -1)
                    layer.values = layer.values.expand(n, -1, -1, -1)
        lengths = torch.tensor(chunk.lengths, device=device)[:, None]
        drafted = torch.arange(chunk.draft.shape[1], device=device) < lengths
        ids, mask = torch.cat([chunk.rest, chunk.draft], 1), torch.cat([chunk.rest_mask, drafted.long()], 1)
        positions = common + (mask.cumsum(1) - 1).clamp(min=0)
        whole = torch.cat([torch.ones(n, common, dtype=torch.long, device=device), mask], 1)
        hidden = torch.empty(0)
        with suppress(StopForward):
            hidden = self._forward(ids, whole, positions, cache, first, states and states[1])
        return cache, hidden

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Cache,
        first: int = 0,
        states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with starting_at(self.blocks, first, (states, None) if self._returns_tuples else states):
            output = self._base(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
        return output.last_hidden_state

    def _likeliest(self, hidden: torch.Tensor) -> np.ndarray:
        """The likeliest next token at each position, int64 `(n, positions)`."""
        flat = hidden.flatten(0, 1)
        step = max(1, _MOST_LOGITS // self._vocabulary)
        parts = [self._head(flat[start : start + step]).argmax(-1) for start in range(0, len(flat), step)]
        return torch.cat(parts).view(hidden.shape[:2]).numpy(force=True)

    def _decided(self, tokens: list[int]) -> bool:
        """Whether a reply is finished, or more tokens cannot change its verdict."""
        if len(tokens) >= self.max_new_tokens or tokens[-1] in self._ends:
            return True
        return isinstance(self.judge, RefusalMatcher) and self._verdict(self.judge, tokens, finished=False) is not None

    def _verdict(self, judge: RefusalMatcher, tokens: list[int], *, finished: bool) -> Verdict | None:
        key = (finished, *tokens)  # many scalings give the same reply
        if key not in self._verdicts:
            if len(self._verdicts) > 1_000_000:
                self._verdicts.clear()
            text = cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))  # of one reply, not of several
            self._verdicts[key] = judge.verdict(text, finished=finished)
        return self._verdicts[key]
