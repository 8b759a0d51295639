"""The row cache: vectors that were read once are not read again, in this process or any other of the same user.

`EmbedLayers` and the scores that read a model themselves use it by default. It is stored beside the artefacts
(`artifacts.store_root`). Its key holds everything that decides a row's vector, so a run without it gives the same
results; ``HF_SAFEFILTER_ROW_CACHE=off`` turns it off.

    rows/<space>/space.json           everything that decides the vectors, except row and layer
    rows/<space>/<layer>/<hash>.arrow some thousand rows at a layer and position; named by a code of the bytes
    rows/<space>/score/<hash>.arrow   the same for scores

References are read by the same steps, in float32: those that are read in one call have a space of their own.
"""

from __future__ import annotations

import os

from hf_safefilter.cache.lookup import recall, tally
from hf_safefilter.cache.row_vectors import Gathering, RowVectors
from hf_safefilter.cache.scores import SCORE, one_score_each, recall_scores
from hf_safefilter.cache.space import Space
from hf_safefilter.cache.store import flush
from hf_safefilter.errors import OptionError

__all__ = [
    "SCORE",
    "SWITCH",
    "Gathering",
    "RowVectors",
    "Space",
    "enabled",
    "flush",
    "one_score_each",
    "recall",
    "recall_scores",
    "tally",
]

SWITCH = "HF_SAFEFILTER_ROW_CACHE"
"""Environment variable: the workers of `Dataset.map` inherit it, and it does not change the hash of a step."""


def enabled() -> bool:
    """Whether the cache is used.

    Raises:
        OptionError: The variable is set to something else than on or off.
    """
    value = os.environ.get(SWITCH, "on").lower()
    if value not in ("on", "off", "1", "0", "true", "false", "yes", "no", ""):
        raise OptionError(f"{SWITCH}={value} is neither on nor off", fix=f"set {SWITCH}=off, or leave it unset")
    return value not in ("off", "0", "false", "no")
