"""The proof of effect: how a model changes when it is tuned on the rows that a filter keeps, or on those it drops.

`measure_effect` tunes the same model, with the same steps and seeds, on all rows, on kept rows, on dropped rows and on
rows chosen without the score, and asks harmful and harmless questions before and after tuning.
"""

from hf_safefilter.effect.arms import ARMS, CONTRASTS, USUAL
from hf_safefilter.effect.effect_report import EffectReport, read_card_part
from hf_safefilter.effect.questions import Questions
from hf_safefilter.effect.study import Study, measure_effect
from hf_safefilter.effect.tuning import Tuning

__all__ = [
    "ARMS",
    "CONTRASTS",
    "USUAL",
    "EffectReport",
    "Questions",
    "Study",
    "Tuning",
    "measure_effect",
    "read_card_part",
]
