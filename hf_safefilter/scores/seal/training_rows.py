"""Rows -> tokens with their labels; rows that cannot be weighed are counted, never guessed at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, as_conversations, conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.shapes import ignored_in
from hf_safefilter.data.splits import parts_of
from hf_safefilter.errors import DataError
from hf_safefilter.model.tokens import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LABELS = "no_label_tokens"
"""Reason of a row whose response has no token that follows another token."""

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row to learn from.

    Attributes:
        ids: Token ids, int32 (length,).
        labels: Which of them are labels, each predicted from the tokens before it, bool (length,).
    """

    ids: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Distinct rows in the order of their ids, so that neither the order nor gaps of the input change a weight.

    Attributes:
        ids: Row ids, ascending.
        examples: The tokens of these rows.
        unfit: Id -> reason, for rows without a label.
        counts: Number of rows read, of duplicates, and of rows for each reason.
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
) -> TrainingRows:
    """Render rows by the model's own template and find their labels: the answers, and the tokens that end them.

    Args:
        rows: `Dataset`, `DatasetDict` (all splits), `IterableDataset`, or dicts.
        tokenizer: The tokenizer of the model.
        columns: Which columns hold prompt and response, for rows of no known shape.
        max_length: Largest number of tokens a row may have; a longer one is unfit (``too_long``). None: no limit.
        chat_template: For a model without a template: a Jinja template, or "plain".
    """
    fit: dict[str, Labelled] = {}
    unfit: dict[str, str] = {}
    counts: Counter[str] = Counter(rows=0, duplicates=0)
    for part in _conversations(rows, columns):
        read = tokenise(tokenizer, part, chat_template=chat_template, ignore=ignored_in(columns))
        for conversation, tokens in zip(part, read, strict=True):
            key = row_id(conversation)
            counts["rows"] += 1
            if key in fit or key in unfit:
                counts["duplicates"] += 1
                continue
            labels = tokens.labelled()
            too_long = max_length is not None and len(tokens.ids) > max_length
            reason = tokens.reason or ("too_long" if too_long else "" if labels.any() else NO_LABELS)
            if reason:
                unfit[key] = reason
            else:
                fit[key] = Labelled(tokens.ids, labels)
    ids = tuple(sorted(fit))
    counts.update(f"unscorable: {reason}" for reason in unfit.values())
    return TrainingRows(ids, tuple(fit[key] for key in ids), unfit, dict(counts))


def require_usable(rows: TrainingRows, safe: TrainingRows) -> None:
    """Raise unless both sides have rows with labels, and none in common.

    Raises:
        DataError: A side is empty, has no row with labels, or shares rows with the other side.
    """
    for name, side in (("rows", rows), ("trusted safe rows", safe)):
        if not side.counts["rows"]:
            raise DataError(f"there are no {name}", fix=f"pass {name}: prompts with responses to learn from")
        if not side.ids:
            reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(side.unfit.values()).most_common())
            raise DataError(
                f"none of the {name} has a response to learn from",
                found=reasons,
                fix="pass rows with a prompt and a response",
            )
    shared = {*rows.ids, *rows.unfit} & set(safe.ids)
    if shared:
        raise DataError(
            f"{len(shared)} of the trusted safe rows are also among the rows to be weighed",
            found=f"row_id {min(shared)}" + (f" and {len(shared) - 1} more" if len(shared) > 1 else ""),
            fix="remove them from one side: a row must not be judged by itself",
        )


def _conversations(rows: Any, columns: Mapping[str, str] | None) -> Iterator[list[Conversation]]:
    for part in parts_of(rows):
        if not hasattr(part, "iter"):
            yield as_conversations(part, columns)
            continue
        for table in part.with_format("arrow").iter(_ROWS_AT_ONCE):
            yield conversations(Batch(table), columns)
