"""A linear probe on the vectors of references, and of labelled rows where there are some; alone, and in an ensemble."""

from hf_safefilter.scores.probe.ensemble import EnsembleScore, fit_ensemble
from hf_safefilter.scores.probe.fit import Probe, fit_probe
from hf_safefilter.scores.probe.score import ProbeScore

__all__ = ["EnsembleScore", "Probe", "ProbeScore", "fit_ensemble", "fit_probe"]
