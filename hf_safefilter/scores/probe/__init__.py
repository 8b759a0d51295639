"""A linear probe on the vectors of references, and of labelled rows where there are some."""

from hf_safefilter.scores.probe.fit import Probe, fit_probe
from hf_safefilter.scores.probe.score import ProbeScore

__all__ = ["Probe", "ProbeScore", "fit_probe"]
