"""Rows of tokens as a model reads them: some with one beginning, read at a token, over a span, and in windows."""

import numpy as np

from hf_safefilter.model.windows import TokenSequence


def token_rows():
    """The same ones each time; packed rows share the beginning of two of them."""
    random = np.random.default_rng(0)
    drawn = [random.integers(7, 320, length).astype(np.int32) for length in (3, 17, 40, 1, 9, 17, 30)]
    drawn[5] = np.concatenate([drawn[2][:10], drawn[5]])
    made = [TokenSequence(ids, ((len(ids) - 1, len(ids)),)) for ids in drawn]
    made[1].reads = ((4, 17),)
    made[2].reads = ((10, 11), (11, 30), (26, 40), (10, 11))
    return made
