"""SEAL: weights learned for the rows of a fine-tuning set so that a model tuned with them stays good on trusted rows.

Training has two levels: a model learns from trusted safe rows and from the weighted rows, and the weight of a row falls
the more, the higher the model's loss on it. The exact update of the reference code is in `bilevel` and `weights`.
Weights are a table keyed by row id: they say nothing about rows that were not fitted. Rows of a legitimate domain that
the safe rows do not cover have high losses, and so appear dangerous.
"""

from hf_safefilter.scores.seal.fit import fit_seal
from hf_safefilter.scores.seal.options import Lora, SealOptions
from hf_safefilter.scores.seal.score import SealScore
from hf_safefilter.scores.seal.selector import SealSelector

__all__ = ["Lora", "SealOptions", "SealScore", "SealSelector", "fit_seal"]
