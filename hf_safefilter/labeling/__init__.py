"""A few labels go far: which rows to ask a person about, what was answered, and what it is worth."""

from hf_safefilter.labeling.choose_rows import next_rows
from hf_safefilter.labeling.curve import CurvePoint
from hf_safefilter.labeling.label_log import LabelLog
from hf_safefilter.labeling.rounds import LabelRounds

__all__ = ["CurvePoint", "LabelLog", "LabelRounds", "next_rows"]
