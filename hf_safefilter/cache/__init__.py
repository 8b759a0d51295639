"""The row cache: vectors that were read once are not read again, in this process or any other of the same user.

It lies under `EmbedLayers` and the scores that read a model themselves, on by default, beside the artefacts in the
store (`artifacts.store_root`). What a row's vector depends on is in its key, so results are those of a run without it;
``HF_SAFEFILTER_ROW_CACHE=off`` turns it off.

    rows/<space>/space.json           what decides the vectors, but for the row and the layer
    rows/<space>/<layer>/<hash>.arrow some thousand rows; the name is the checksum of the bytes
    rows/<space>/score/<hash>.arrow   the same of scores
"""

from __future__ import annotations

import os

from hf_safefilter.cache.lookup import recall
from hf_safefilter.cache.read_rows import Reading
from hf_safefilter.cache.scores import SCORE, as_reading, recall_scores
from hf_safefilter.cache.space import Space
from hf_safefilter.cache.store import flush
from hf_safefilter.errors import OptionError

__all__ = ["SCORE", "SWITCH", "Reading", "Space", "as_reading", "enabled", "flush", "recall", "recall_scores"]

SWITCH = "HF_SAFEFILTER_ROW_CACHE"
"""Environment variable; an environment reaches the workers that `Dataset.map` starts, and no step's hash."""


def enabled() -> bool:
    """Whether vectors are kept and looked up.

    Raises:
        OptionError: the variable says neither yes nor no.
    """
    said = os.environ.get(SWITCH, "on").lower()
    if said not in ("on", "off", "1", "0", "true", "false", "yes", "no", ""):
        raise OptionError(f"{SWITCH}={said} is neither on nor off", fix=f"set {SWITCH}=off, or leave it out")
    return said not in ("off", "0", "false", "no")
