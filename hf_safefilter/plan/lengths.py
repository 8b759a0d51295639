"""How long the rows are: told, or measured on a sample with the model's tokenizer alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.errors import DataError, OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedConfig

    from hf_safefilter.model.reading_options import ReadingOptions

_NO_LIMIT = 1e9  # a tokenizer without a limit says 1e30
SAMPLE = 512
_SEED = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Rows and their tokens.

    Attributes:
        rows: how many.
        mean: tokens of a row.
        squared: mean of the squares of the tokens, which attention takes.
        sampled: rows this was measured on; 0: it was told.
    """

    rows: int
    mean: float
    squared: float
    sampled: int = 0

    @classmethod
    def told(cls, rows: int, mean: float, most: int | None = None) -> Lengths:
        """`rows` rows of `mean` tokens each, all alike, and cut to `most`."""
        if rows < 1 or not 1 <= mean < float("inf"):
            raise OptionError(f"{rows} rows of {mean} tokens are no rows to plan for", fix="use 1 or more of both")
        mean = min(mean, most or mean)
        return cls(rows, mean, mean**2)


def spread_sample(rows: Dataset | DatasetDict, size: int = SAMPLE) -> Dataset:
    """`size` rows drawn at random, always the same; of all splits together."""
    from datasets import concatenate_datasets

    parts = list(rows.values()) if isinstance(rows, Mapping) else [rows]
    whole = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    chosen = np.random.default_rng(_SEED).permutation(len(whole))[:size]
    return whole.select(np.sort(chosen))


def limit(config: PreTrainedConfig, tokenizer: Any = None) -> int | None:
    """The longest row a model allows, in tokens, as far as its configuration and tokenizer say."""
    said = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    said += [tokenizer.model_max_length] if tokenizer is not None else []
    return min((one for one in said if one is not None and 0 < one < _NO_LIMIT), default=None)


def sample_lengths(
    rows: Dataset | DatasetDict,
    reading: ReadingOptions,
    columns: Mapping[str, str] | None = None,
) -> Lengths:
    """Tokens of a sample of `rows`, as `EmbedLayers` with these options would read them.

    Raises:
        DataError: no row of the sample can be read.
        ModelError: no such model, or no tokenizer or template.
    """
    from hf_safefilter.data.conversations import as_conversations
    from hf_safefilter.model.tokens import tokenise
    from hf_safefilter.plan.work import pretrained, read_config

    sample = spread_sample(rows)
    tokenizer = pretrained("AutoTokenizer", reading.model, reading.revision)
    found = tokenise(
        tokenizer,
        as_conversations(sample, columns),
        position=reading.position,
        max_length=reading.max_length or limit(read_config(reading.model, reading.revision), tokenizer),
        chat_template=reading.chat_template,
    )
    # a row that cannot be read costs nothing, and so counts as one of no tokens
    tokens = np.array([len(one.ids) for one in found], dtype=float)
    if not tokens.any():
        raise DataError("no row of the sample can be read", found=found[0].reason if found else "no rows")
    total = sum(map(len, rows.values())) if isinstance(rows, Mapping) else len(rows)
    return Lengths(total, float(tokens.mean()), float((tokens**2).mean()), len(tokens))
