"""The rows of a study as a model learns them: the readable ones, as tokens, with the decision on each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, conversations, prompt_of
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.shapes import ignored_in
from hf_safefilter.errors import DataError

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
        unreadable: Number of rows that are in no arm because the model cannot read them.
    """

    conversations: tuple[Conversation, ...]
    tokens: tuple[Tokens, ...]
    kept: np.ndarray
    unreadable: int

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
            self.unreadable,
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
    for split in scored.values() if isinstance(scored, Mapping) else [scored]:
        text = split.select_columns([name for name in split.column_names if not name.startswith(EMBEDDING_PREFIX)])
        for table in text.with_format("arrow").iter(4096):
            batch = Batch(table)
            kept.append(is_safe.mask(batch))
            rows += conversations(batch, columns)
    tokens = tokens_of(rows, key, max_length, chat_template, ignored_in(columns))
    readable = [index for index, row in enumerate(tokens) if not row.reason]
    if not readable:
        raise DataError("no row can be tuned on", found=f"{len(rows)} rows, none readable", fix="check the columns")
    return Material(
        tuple(rows[index] for index in readable),
        tuple(tokens[index] for index in readable),
        np.concatenate(kept)[readable],
        len(rows) - len(readable),
    )


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
