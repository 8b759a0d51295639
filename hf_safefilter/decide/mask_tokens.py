"""`MaskTokens`: rows as token ids and labels for a trainer, without the stretches that a score finds dangerous."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_safefilter.columns import span_scores_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.step import Step

IGNORED = -100
"""The label of a token that is not learned, as torch's cross entropy and TRL's collators have it."""


@dataclass(frozen=True, slots=True)
class MaskTokens(Step):
    """Adds ``input_ids`` and ``labels``, int32 lists, which TRL's trainers and collators take as they are.

    Labels are the ids of the answers, and -100 for context and for each span, or window of one, whose score reaches
    the threshold: the rest of a good row is still learned. Of a row on which people decided, the turns that they mask
    are not learned, or nothing of it if they drop it. A row that could not be scored, and that nobody keeps, has no
    labels, as nothing of it is known to be safe; what was cut off (``too_long="cut"``) is not there.

    Args:
        embed: How the rows were read; the tokens are those of its model and template.
        is_safe: The decision; its method's scores of spans are used.
    """

    embed: EmbedLayers
    is_safe: IsSafe
    algorithm: int = field(default=1, init=False)

    def produces(self) -> tuple[str, ...]:
        """``input_ids`` and ``labels``."""
        return ("input_ids", "labels")

    def needs(self) -> tuple[str, ...]:
        """The scores of spans."""
        return (span_scores_column(self.is_safe.method),)

    def record(self) -> dict[str, Any]:
        """See `Step.record`; the step and the decision as plain values too."""
        return {"step": "MaskTokens", "embed": self.embed.record(), "decision": self.is_safe.to_json()}

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """int32 lists of one length a row."""
        rows = self.embed.tokens(conversations(batch, self.embed.mapping)) if batch.n else []
        ids, labels = [], []
        decided = np.isfinite(batch.numbers(self.is_safe.column)) | (self.is_safe.rulings(batch) != "")
        for tokens, masked, known in zip(rows, masked_tokens(batch, self.is_safe), decided, strict=True):
            tokens.masked = masked
            ids.append(tokens.ids)
            labels.append(np.where(tokens.labelled() & known, tokens.ids, IGNORED).astype(np.int32))
        none = np.empty(0, np.int32)
        return {"input_ids": Ragged.of(ids, none), "labels": Ragged.of(labels, none)}


def masked_tokens(batch: Batch, is_safe: IsSafe) -> list[tuple[tuple[int, int], ...]]:
    """The stretches [start:stop] of each row that are not to be learned, among its own tokens.

    Raises:
        MissingError: The rows have no scores of spans.
    """
    return [
        tuple(zip(spans["start"].tolist(), spans["stop"].tolist(), strict=True))
        for spans in is_safe.masked_spans(batch)
    ]
