"""The rows of a study as a model learns them: the readable ones, as tokens, with the decision on each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.columns import EMBEDDING_PREFIX, SPANS, span_scores_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, conversations, prompt_of
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.shapes import ignored_in
from hf_safefilter.decide.mask_tokens import masked_tokens
from hf_safefilter.errors import DataError, MissingError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.model.tokens import Tokens


@dataclass(frozen=True)
class Material:
    """The n rows that can be tuned on.

    Attributes:
        conversations: Conversations of the rows.
        tokens: Tokens of the rows, as the model reads them.
        kept: Which rows the filter keeps, bool (n,); a row without a score is not kept.
        scored: Which rows have a score, bool (n,).
        unreadable: Number of rows that are in no arm because the model cannot read them.
        masked: For each row the tokens [start:stop] that the decision finds dangerous; None if spans have no scores.
        added: Number of refusals at the end of `conversations` and `tokens`, which are not among the n rows.
    """

    conversations: tuple[Conversation, ...]
    tokens: tuple[Tokens, ...]
    kept: np.ndarray
    scored: np.ndarray
    unreadable: int
    masked: tuple[tuple[tuple[int, int], ...], ...] | None = None
    added: int = 0

    @cached_property
    def ids(self) -> list[str]:
        """Row ids, in order."""
        return [row_id(conversation) for conversation in self.conversations]

    @cached_property
    def prompts(self) -> list[str]:
        """Last user turns, in order."""
        return [prompt_of(conversation) for conversation in self.conversations]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens that are learned, int (n,)."""
        return np.array([int(row.labelled().sum()) for row in self.tokens])

    def with_refusals(self, rows: Sequence[Conversation], tokens: Sequence[Tokens]) -> Material:
        """The material with refusals at its end."""
        return replace(
            self, conversations=(*self.conversations, *rows), tokens=(*self.tokens, *tokens), added=len(rows)
        )

    @cached_property
    def masked_tokens(self) -> tuple[Tokens, ...]:
        """Tokens of the rows, of which the dangerous ones are not learned.

        Raises:
            MissingError: Spans have no scores.
        """
        if self.masked is None:
            raise MissingError(
                "the arm 'masked' needs the scores of spans", fix="score the rows by a method of vectors, such as larf"
            )
        own = self.tokens[: len(self.masked)]
        return tuple(replace(row, masked=spans) for row, spans in zip(own, self.masked, strict=True))

    @cached_property
    def left(self) -> np.ndarray:
        """In which scored rows something is left to learn when they are masked, bool (n,)."""
        learned = np.array([bool(row.labelled().any()) for row in self.masked_tokens])
        return learned & self.scored

    def hold_out(self, count: int) -> tuple[Material, tuple[Conversation, ...]]:
        """The material without up to `count` kept rows (at most a tenth of the kept ones), and these rows.

        The same rows are drawn in every study. Duplicates of held-out rows are removed from the material too.
        """
        ids = self.ids
        kept = sorted({id_ for id_, keep in zip(ids, self.kept, strict=True) if keep})
        drawn = np.random.default_rng(0).permutation(len(kept))[: min(count, len(kept) // 10)]
        held_out = {kept[index] for index in drawn}
        conversations = {
            id_: conversation for id_, conversation in zip(ids, self.conversations, strict=True) if id_ in held_out
        }
        rest = [index for index, id_ in enumerate(ids) if id_ not in held_out]
        return self._select(rest), tuple(conversations.values())

    def _select(self, indices: list[int]) -> Material:
        return Material(
            tuple(self.conversations[index] for index in indices),
            tuple(self.tokens[index] for index in indices),
            self.kept[indices],
            self.scored[indices],
            self.unreadable,
            None if self.masked is None else tuple(self.masked[index] for index in indices),
        )


def read_material(
    scored: Dataset | DatasetDict,
    is_safe: IsSafe,
    key: ModelKey,
    max_length: int | None,
    chat_template: str | None,
    columns: Mapping[str, str] | None,
) -> Material:
    """Read scored rows, all splits one after the other.

    Args:
        scored: Rows with the score column.
        is_safe: Decision on the rows.
        key: Model that will be tuned.
        max_length: Largest number of tokens of a row; None sets no limit of its own.
        chat_template: Template for a model that has none.
        columns: Columns of prompt and response, for rows of no known shape.

    Raises:
        MissingError: No score column.
        DataError: No row that can be tuned on.
    """
    rows: list[Conversation] = []
    kept: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    masked: list[tuple[tuple[int, int], ...]] | None = []
    for split in scored.values() if isinstance(scored, Mapping) else [scored]:
        text = split.select_columns([name for name in split.column_names if not name.startswith(EMBEDDING_PREFIX)])
        for table in text.with_format("arrow").iter(4096):
            batch = Batch(table)
            kept.append(is_safe.mask(batch))
            scores.append(batch.numbers(is_safe.column))
            if masked is not None:
                masked = [*masked, *masked_tokens(batch, is_safe)] if _scores_spans(batch, is_safe) else None
            rows += conversations(batch, columns)
    tokens = tokens_of(rows, key, max_length, chat_template, ignored_in(columns))
    readable = [index for index, row in enumerate(tokens) if not row.reason]
    if not readable:
        raise DataError("no row can be tuned on", found=f"{len(rows)} rows, none readable", fix="check the columns")
    return Material(
        tuple(rows[index] for index in readable),
        tuple(tokens[index] for index in readable),
        np.concatenate(kept)[readable],
        np.isfinite(np.concatenate(scores))[readable],
        len(rows) - len(readable),
        None if masked is None else tuple(masked[index] for index in readable),
    )


def _scores_spans(batch: Batch, is_safe: IsSafe) -> bool:
    return {SPANS, span_scores_column(is_safe.method)} <= set(batch.names)


def tokens_of(
    rows: Sequence[Conversation],
    key: ModelKey,
    max_length: int | None,
    chat_template: str | None,
    ignore: Collection[str] = (),
) -> list[Tokens]:
    """Tokens of conversations as the model learns them; the end of longer rows is cut, as trainers cut it."""
    from hf_safefilter.model import load
    from hf_safefilter.model.tokens import tokenise

    limits = [limit for limit in (max_length, load.max_tokens(key)) if limit is not None]
    tokens = tokenise(load.tokenizer(key), rows, chat_template=chat_template, ignore=ignore)
    return [row.cut(min(limits)) if limits else row for row in tokens]
