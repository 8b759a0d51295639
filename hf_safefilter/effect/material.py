"""The rows of a study as a model learns them: readable ones, in tokens, with the decision that was made on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, conversations, prompt_of, row_id
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
        conversations: what is said in them.
        tokens: as the model reads them.
        kept: bool (n,), the decision; a row that could not be scored is not kept.
        unreadable: rows that are in no arm because the model cannot read them.
    """

    conversations: tuple[Conversation, ...]
    tokens: tuple[Tokens, ...]
    kept: np.ndarray
    unreadable: int

    @cached_property
    def ids(self) -> list[str]:
        """Row ids, in order."""
        return [row_id(one) for one in self.conversations]

    @cached_property
    def prompts(self) -> list[str]:
        """Last user turns, in order."""
        return [prompt_of(one) for one in self.conversations]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens from the start of the response on, int (n,)."""
        return np.array([len(one.ids) - one.start for one in self.tokens])

    def hold_out(self, count: int) -> tuple[Material, tuple[Conversation, ...]]:
        """The material without up to `count` kept rows, at most a tenth of them, and these rows.

        The same rows are drawn in every study; duplicates of them leave the material with them.
        """
        ids = self.ids
        kept = sorted({one for one, keep in zip(ids, self.kept, strict=True) if keep})
        drawn = np.random.default_rng(0).permutation(len(kept))[: min(count, len(kept) // 10)]
        out = {kept[at] for at in drawn}
        places = [at for at, one in enumerate(ids) if one not in out]
        held = {one: said for one, said in zip(ids, self.conversations, strict=True) if one in out}
        left = Material(
            tuple(self.conversations[at] for at in places),
            tuple(self.tokens[at] for at in places),
            self.kept[places],
            self.unreadable,
        )
        return left, tuple(held.values())


def read_material(
    scored: Dataset | DatasetDict,
    is_safe: IsSafe,
    key: ModelKey,
    max_length: int | None,
    chat_template: str | None,
    columns: Mapping[str, str] | None,
) -> Material:
    """Read scored rows, all splits one after the other.

    Raises:
        MissingError: no score column.
        DataError: no row that can be tuned on.
    """
    found: list[Conversation] = []
    kept: list[np.ndarray] = []
    for part in scored.values() if isinstance(scored, Mapping) else [scored]:
        text = part.select_columns([name for name in part.column_names if not name.startswith(EMBEDDING_PREFIX)])
        for table in text.with_format("arrow").iter(4096):
            batch = Batch(table)
            kept.append(is_safe.mask(batch))
            found += conversations(batch, columns)
    tokens = tokens_of(found, key, max_length, chat_template)
    good = [place for place, one in enumerate(tokens) if not one.reason]
    if not good:
        raise DataError("no row can be tuned on", found=f"{len(found)} rows, none readable", fix="check the columns")
    return Material(
        tuple(found[place] for place in good),
        tuple(tokens[place] for place in good),
        np.concatenate(kept)[good],
        len(found) - len(good),
    )


def tokens_of(
    found: Sequence[Conversation], key: ModelKey, max_length: int | None, chat_template: str | None
) -> list[Tokens]:
    """The rows as the model reads them; `start` is where the response begins."""
    from hf_safefilter.model import load
    from hf_safefilter.model.tokens import tokenise

    limits: list[Any] = [one for one in (max_length, load.max_tokens(key)) if one is not None]
    return tokenise(
        load.tokenizer(key), found, position="mean_response", max_length=min(limits, default=None),
        chat_template=chat_template,
    )  # fmt: skip
