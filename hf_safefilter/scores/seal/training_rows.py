"""Rows -> tokens with the place of the response among them; what cannot be weighed is counted, never guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, as_conversations, conversations, row_id
from hf_safefilter.errors import DataError
from hf_safefilter.model.tokens import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LABELS = "no_label_tokens"
"""Reason of a row that has a response, but no token of it that follows another."""

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row to learn from: the tokens at [start:stop] are its labels, each predicted from those before it."""

    ids: np.ndarray
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Distinct rows in the order of their ids, so that neither order nor gaps of the input can shift a weight.

    Attributes:
        ids: row ids, ascending.
        examples: their tokens.
        unfit: ids of rows without a label -> the reason.
        counts: rows met, duplicates among them, truncated ones, and rows of each reason.
    """

    ids: tuple[str, ...]
    examples: tuple[Labelled, ...]
    unfit: Mapping[str, str]
    counts: Mapping[str, int]


def read_rows(
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, str] | None,
    max_length: int | None,
    chat_template: str | None,
) -> Rows:
    """Render rows by the model's own template and find their labels: the response, and the token that ends its turn.

    Args:
        rows: `Dataset`, `DatasetDict` (all splits), `IterableDataset`, or dicts.
        tokenizer: the model's.
        columns: where prompt and response are, for rows of no known shape.
        max_length: tokens a row may have.
        chat_template: for a model that has none.
    """
    fit: dict[str, Labelled] = {}
    unfit: dict[str, str] = {}
    counts: Counter[str] = Counter(rows=0, duplicates=0, truncated=0)
    for found in _conversations(rows, columns):
        read = tokenise(tokenizer, found, position="mean_response", max_length=max_length, chat_template=chat_template)
        for conversation, tokens in zip(found, read, strict=True):
            one = row_id(conversation)
            counts["rows"] += 1
            if one in fit or one in unfit:
                counts["duplicates"] += 1
                continue
            # a model that learns to answer learns to stop: the token after the response is a label too
            start, stop = max(tokens.start, 1), min(tokens.stop + 1, len(tokens.ids))
            reason = tokens.reason or ("" if start < stop else NO_LABELS)
            if reason:
                unfit[one] = reason
                continue
            counts["truncated"] += tokens.truncated
            fit[one] = Labelled(tokens.ids, start, stop)
    ids = tuple(sorted(fit))
    counts.update(f"unscorable: {reason}" for reason in unfit.values())
    return Rows(ids, tuple(fit[one] for one in ids), unfit, dict(counts))


def require_usable(rows: Rows, safe: Rows) -> None:
    """Raise unless both sides have rows, and none in common.

    Raises:
        DataError: a side is empty, has no row with labels, or shares rows with the other.
    """
    for name, side in (("rows", rows), ("trusted safe rows", safe)):
        if not side.counts["rows"]:
            raise DataError(f"there are no {name}", fix=f"pass {name}: prompts with the responses to learn from")
        if not side.ids:
            reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(side.unfit.values()).most_common())
            raise DataError(f"none of the {name} has a response to learn from", found=reasons, fix="mend the rows")
    shared = {*rows.ids, *rows.unfit} & set(safe.ids)
    if shared:
        raise DataError(
            f"{len(shared)} of the trusted safe rows stand among the rows to be judged",
            found=f"row_id {min(shared)}" + (f" and {len(shared) - 1} more" if len(shared) > 1 else ""),
            fix="take them out of one side: a row that says what is safe would vouch for itself",
        )


def _conversations(rows: Any, columns: Mapping[str, str] | None) -> Iterator[list[Conversation]]:
    for part in rows.values() if isinstance(rows, Mapping) else [rows]:
        if not hasattr(part, "iter"):
            yield as_conversations(part, columns)
            continue
        for table in part.with_format("arrow").iter(_ROWS_AT_ONCE):
            yield conversations(Batch(table), columns)
