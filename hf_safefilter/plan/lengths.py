"""How long the rows are: given by the user, or measured on a sample with the tokenizer of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.checks import require_number, require_whole
from hf_safefilter.data.splits import count_rows, parts_of
from hf_safefilter.errors import DataError
from hf_safefilter.model.windows import count_windows

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from hf_safefilter.model.reading_options import ReadingOptions

SAMPLE = 512
"""Number of rows on which lengths are measured."""

_NO_LIMIT = 1e9  # the limit of a tokenizer without a limit is 1e30
_SEED = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Number of rows and of their tokens.

    Attributes:
        rows: Number of rows.
        mean: Mean number of tokens that are read of a row, in one sequence or in several.
        squared: Mean, over the rows, of the squared lengths of its sequences, to which the work of attention is
            proportional.
        sampled: Number of rows this was measured on; 0: it was given by the user.
        spans: Mean number of spans of a row.
    """

    rows: int
    mean: float
    squared: float
    sampled: int = 0
    spans: float = 1.0

    @classmethod
    def uniform(
        cls, num_rows: int, mean_tokens: float, max_length: int | None = None, window: int | None = None
    ) -> Lengths:
        """The lengths of rows with `mean_tokens` tokens each, cut to `max_length`.

        How many of them are answers is not known: all of them are taken for one, so that there are no more windows.

        Args:
            num_rows: Number of rows.
            mean_tokens: Tokens of each.
            max_length: Most tokens that are read of a row.
            window: Most tokens of a span; None: a span is an answer.

        Raises:
            OptionError: One of both numbers is below 1.
        """
        require_whole("num_rows", num_rows, least=1)
        require_number("mean_tokens", mean_tokens, least=1)
        tokens = min(mean_tokens, max_length or mean_tokens)
        return cls(num_rows, tokens, tokens**2, spans=1.0 if window is None else count_windows(round(tokens), window))


def spread_sample(rows: Dataset | DatasetDict, size: int = SAMPLE) -> Dataset:
    """`size` rows of all splits together, drawn at random with a fixed seed."""
    from datasets import concatenate_datasets

    parts = parts_of(rows)
    whole = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    chosen = np.random.default_rng(_SEED).permutation(len(whole))[:size]
    return whole.select(np.sort(chosen))


def limit(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
    """Largest number of tokens in a row by the configuration and the tokenizer; None: neither states one."""
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    limits += [tokenizer.model_max_length] if tokenizer is not None else []
    return min((tokens for tokens in limits if tokens is not None and 0 < tokens < _NO_LIMIT), default=None)


def sample_lengths(
    rows: Dataset | DatasetDict,
    reading: ReadingOptions,
    columns: Mapping[str, str] | None = None,
) -> Lengths:
    """Number of tokens in a sample of `rows`, as `EmbedLayers` with these options would read them.

    Args:
        rows: The rows to embed.
        reading: Which model, and how rows are read.
        columns: Which columns hold prompt and response, for rows of no known shape.

    Raises:
        DataError: No row of the sample can be read.
        ModelError: The model, its tokenizer or its template does not exist.
    """
    from hf_safefilter.data.conversations import as_conversations
    from hf_safefilter.data.shapes import with_ignored
    from hf_safefilter.model.windows import plan_reads
    from hf_safefilter.plan.work import pretrained, read_config

    sample = spread_sample(rows)
    tokenizer = pretrained("AutoTokenizer", reading.model, reading.revision)
    reads = plan_reads(
        as_conversations(sample, with_ignored(columns, reading.ignored)),
        tokenizer,
        reading,
        limit(read_config(reading.model, reading.revision), tokenizer),
    )
    # a row that cannot be read takes no work, so it counts as a row without tokens
    lengths = [[len(one.ids) for one in row.sequences] for row in reads]
    if not any(lengths):
        raise DataError("no row of the sample can be read", found=reads[0].reason if reads else "no rows")
    tokens = [sum(row) for row in lengths]
    squared = [sum(length**2 for length in row) for row in lengths]  # no token sees another sequence
    spans = float(np.mean([len(row.spans) for row in reads]))
    return Lengths(count_rows(rows), float(np.mean(tokens)), float(np.mean(squared)), len(reads), spans)
