"""The proof of effect: what a filter does to the model that is tuned on what it keeps, and on what it drops.

`measure_effect` tunes the same model, with the same steps and seeds, on all rows, on kept rows, on dropped rows and on
rows chosen without the score, and asks each of them harmful and harmless questions before and after.
"""

from hf_safefilter.effect.arms import ARMS, CONTRASTS
from hf_safefilter.effect.effect_report import EffectReport, read_card_part
from hf_safefilter.effect.questions import Questions
from hf_safefilter.effect.study import Study, measure_effect
from hf_safefilter.effect.tuning import Tuning

__all__ = ["ARMS", "CONTRASTS", "EffectReport", "Questions", "Study", "Tuning", "measure_effect", "read_card_part"]
