"""SEAL: weights learned for the rows of a fine-tuning set so that a model tuned with them stays good on trusted rows.

Two levels at once: a model learns from trusted safe rows and from the weighted rows, and the weight of a row falls the
harder that model finds it. The exact update of the reference is in `bilevel` and `weights`. Weights are keyed by row
id. The weights are a table: they say nothing of rows that were not fitted, and a legitimate domain that the safe rows
lack looks hard, and so dangerous.
"""

from hf_safefilter.scores.seal.fit import fit_seal
from hf_safefilter.scores.seal.options import Lora, SealOptions
from hf_safefilter.scores.seal.score import SealScore
from hf_safefilter.scores.seal.selector import SealSelector

__all__ = ["Lora", "SealOptions", "SealScore", "SealSelector", "fit_seal"]
