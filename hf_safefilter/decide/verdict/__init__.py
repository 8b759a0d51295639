"""The verdict on a score: whether anything shows that it finds unsafe rows, or only long ones, or nothing at all.

With labels, by bootstrap (stratified by label, 95 % percentile intervals):

- under 5 rows of a kind: too few labels, nothing is said;
- the whole interval of the AUROC lies below 0.5: upside down; it reaches 0.5: like chance;
- the AUROC is above that of length, the interval of the difference on the same rows lying above 0: beats length;
- it is not, but among rows of like length the AUROC is above 0.5, and above what length itself still reaches there,
  both by their intervals: beats length too;
- else: like length.

Without labels, from the references that were held out in cross-validation and from the rows:

- half of the order of the rows or more is length: like length. The share is the square of the rank correlation with
  length (Spearman), as of a variance that is explained; that is a correlation of 0.71 or more, either way round. Of
  fewer than 10 rows it says nothing, for chance gives as much;
- not tried on references: not known;
- the held-out references are not separated better than chance by the bar that choosing a layer has: like chance;
- else: separates references.

A control is never trusted. Length tells as much when unsafe rows are the short ones, so its AUROC counts from 0.5 up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from hf_safefilter.columns import SCORE_SUFFIX, score_column
from hf_safefilter.decide.verdict.rank_statistics import Interval, Ranking, interval, resampled, spearman, strata_of
from hf_safefilter.errors import IntegrityError
from hf_safefilter.scores import CONTROLS

LEAST_LABELS = 5
"""Rows of each kind that labels must have: even a perfect order of fewer is often chance."""

MOST_LENGTH = 0.5
"""Share of the order of the rows that may be length, where there are no labels to tell harm from length."""

LEAST_ROWS = 10
"""Rows that an order must have to be called one of length: of fewer, a correlation of 0.71 is often chance."""

LEAST_HELD_OUT = {"AUROC": 0.6, "gap": 0.36}
"""What the lower bound of the separation of held-out references must exceed. The bar for AUROC is that of
`locate.cross_validation`; the gap, in standard deviations, is that of normal scores with this AUROC."""

Basis = Literal["labels", "references", "nothing"]
Measure = Literal["AUROC", "gap"]
Finding = Literal[
    "beats length", "separates references", "too few labels", "not known", "like length", "like chance", "upside down",
    "control",
]  # fmt: skip

_BAD = ("like length", "like chance", "upside down", "control")
_UNKNOWN = ("too few labels", "not known")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a score, and the figures behind it; a figure that is not known is None.

    Attributes:
        score: Name of the score column.
        finding: The verdict in two or three words.
        basis: What it rests on.
        sentence: The verdict in a sentence or two, for a person.
        auroc: AUROC on the labelled rows.
        length_auroc: AUROC of the length of the response on the same rows; below 0.5, unsafe rows are the short ones.
        lead: AUROC minus that of length (in the direction in which it tells more).
        matched_auroc: AUROC among labelled rows of like length: the mean over strata of length, about ten rows each,
            weighted by their numbers of pairs of an unsafe and a safe row.
        matched_lead: The same minus the AUROC that length still has within these strata.
        length_rho: Rank correlation of the score with length over all rows, or over the labelled ones (Spearman).
        held_out: Separation of held-out references.
        measure: What `held_out` is: an AUROC, or the gap between the means in standard deviations (d').
    """

    score: str
    finding: Finding
    basis: Basis
    sentence: str
    auroc: Interval | None = None
    length_auroc: float | None = None
    lead: Interval | None = None
    matched_auroc: Interval | None = None
    matched_lead: Interval | None = None
    length_rho: float | None = None
    held_out: Interval | None = None
    measure: Measure | None = None

    @property
    def trusted(self) -> bool:
        """Whether something shows that the score finds what it should, and nothing speaks against it."""
        return self.finding not in (*_BAD, *_UNKNOWN)

    @property
    def bad(self) -> bool:
        """Whether something speaks against the score: then nobody should publish by it without insisting."""
        return self.finding in _BAD

    @property
    def length_share(self) -> float | None:
        """Share of the order of the rows that is length, in [0, 1]: the square of `length_rho`."""
        return None if self.length_rho is None else self.length_rho**2

    def to_json(self) -> dict[str, Any]:
        """Plain values from which `from_json` makes the same verdict, and whether it is trusted, for other programs."""
        return asdict(self) | {"length_share": self.length_share, "trusted": self.trusted, "bad": self.bad}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Verdict:
        """See `to_json`.

        Raises:
            IntegrityError: The record is something else.
        """
        try:
            body = {name: record[name] for name in cls.__slots__}
            for name in ("auroc", "lead", "matched_auroc", "matched_lead", "held_out"):
                body[name] = None if body[name] is None else Interval(**body[name])
            verdict = cls(**body)
            if verdict.finding not in get_args(Finding) or not isinstance(verdict.sentence, str):
                raise ValueError(verdict.finding)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError("this is not the record of a verdict", fix="make the decision again") from error
        return verdict


def verdict_from_labels(
    score: str,
    scores: np.ndarray,
    unsafe: np.ndarray,
    lengths: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """The verdict on a score by labelled rows; the rules are those of this module.

    Args:
        score: Name of the score column.
        scores: Scores (n,); rows without a finite one are left out.
        unsafe: Whether a row is labelled unsafe, bool (n,).
        lengths: Length of the responses (n,); a row without one stands in the middle, where it tells nothing.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """
    used = np.isfinite(scores)
    scores, unsafe, lengths = scores[used], unsafe[used].astype(bool), lengths[used]
    n_unsafe, n_safe = int(unsafe.sum()), int((~unsafe).sum())
    rho, name = spearman(scores, lengths), shown_name(score)
    if not min(n_unsafe, n_safe):
        return Verdict(score, "too few labels", "labels", _too_few(name, n_unsafe, n_safe), length_rho=rho)
    known = np.isfinite(lengths)
    lengths = np.where(known, lengths, np.median(lengths[known]) if known.any() else 0.0)
    strata = strata_of(lengths)
    length_auroc = Ranking(lengths).auroc(unsafe)
    towards = lengths if length_auroc is None or length_auroc >= 0.5 else -lengths
    rankings = [Ranking(scores), Ranking(towards), Ranking(scores, strata), Ranking(towards, strata)]
    values = [ranking.auroc(unsafe) for ranking in rankings]
    draws = resampled(unsafe, rankings, resamples, seed)
    auroc, lead = _interval(values[0], draws[0]), _lead(values[:2], draws[:2])
    matched, matched_lead = _interval(values[2], draws[2]), _lead(values[2:], draws[2:])
    assert auroc is not None and lead is not None  # there are rows of both kinds
    finding: Finding
    if score in _CONTROL_COLUMNS:
        finding = "control"
    elif min(n_unsafe, n_safe) < LEAST_LABELS:
        finding = "too few labels"
    elif auroc.low <= 0.5:
        finding = "upside down" if auroc.high < 0.5 else "like chance"
    elif lead.low > 0 or _above_length(matched, matched_lead):
        finding = "beats length"
    else:
        finding = "like length"
    figures = (
        f"AUROC {auroc.value:.2f} with interval {auroc.low:.2f} to {auroc.high:.2f}, length alone {length_auroc:.2f}"
    )
    figures += ", no rows of like length" if matched is None else f", among rows of like length {matched.value:.2f}"
    sentence = {
        "control": _control(name),
        "too few labels": _too_few(name, n_unsafe, n_safe),
        "upside down": f"{name} is upside down, safe rows score higher than unsafe ones: {figures}. Do not trust it.",
        "like chance": f"{name} is no better than chance on the labelled rows: {figures}. Do not trust it.",
        "like length": f"{name} is no better than length on the labelled rows: {figures}. Do not trust it.",
        "beats length": f"{name} beats chance and {'length' if lead.low > 0 else 'length among rows of like length'} "
        f"on the {n_unsafe} unsafe and {n_safe} safe labelled rows: {figures}.",
    }[finding]
    return Verdict(score, finding, "labels", sentence, auroc, length_auroc, lead, matched, matched_lead, length_rho=rho)


def verdict_from_references(
    score: str,
    scores: np.ndarray,
    lengths: np.ndarray,
    held_out: Interval | float | None,
    *,
    measure: Measure = "AUROC",
) -> Verdict:
    """The verdict on a score without labels; the rules are those of this module.

    Args:
        score: Name of the score column.
        scores: Scores of the rows (n,); rows without a finite one are left out.
        lengths: Length of the responses (n,).
        held_out: How well the score separates references that were held out; a number stands for its own lower bound.
            None: it was not tried.
        measure: What `held_out` is: an AUROC, or the gap in standard deviations.
    """
    if isinstance(held_out, (int, float)):
        held_out = Interval(float(held_out), float(held_out), float(held_out))
    rho, name = spearman(scores, lengths), shown_name(score)
    of_length = "" if rho is None else f"{rho**2:.2f} of its order is length"
    basis: Basis = "nothing" if held_out is None else "references"
    finding: Finding
    parts = "" if held_out is None else f"{_MEASURED[measure]} {held_out.value:.2f}, at least {held_out.low:.2f}"
    if score in _CONTROL_COLUMNS:
        finding, sentence = "control", _control(name)
    elif rho is not None and rho**2 >= MOST_LENGTH and np.isfinite(scores).sum() >= LEAST_ROWS:
        known = "nothing shows that it finds anything here" if held_out is None else f"held-out references: {parts}"
        finding, sentence = "like length", f"{name} follows length, {of_length}, {known}. Do not trust it."
    elif held_out is None:
        tail = f" {of_length[0].upper()}{of_length[1:]}." if of_length else ""
        finding = "not known"
        sentence = f"Nothing shows that {name} finds anything here: no labels, and not tried on references.{tail}"
    elif held_out.low <= LEAST_HELD_OUT[measure]:
        finding = "like chance"
        sentence = f"{name} separates held-out references no better than chance, {parts}. Do not trust it."
    else:
        tail = f", {of_length}" if of_length else ""
        finding, sentence = "separates references", f"{name} separates held-out references, {parts}{tail}."
    return Verdict(
        score, finding, basis, sentence, length_rho=rho, held_out=held_out,
        measure=None if held_out is None else measure,
    )  # fmt: skip


_CONTROL_COLUMNS = tuple(map(score_column, CONTROLS))
_MEASURED = {"AUROC": "AUROC", "gap": "gap in standard deviations"}


def shown_name(score: str) -> str:
    """A score column as sentences call it."""
    return score.removesuffix(SCORE_SUFFIX).replace("_", " ")


def _interval(value: float | None, draws: np.ndarray) -> Interval | None:
    return None if value is None else interval(value, draws)


def _lead(values: list[float | None], draws: np.ndarray) -> Interval | None:
    score, length = values
    return None if score is None or length is None else interval(score - length, draws[0] - draws[1])


def _above_length(matched: Interval | None, lead: Interval | None) -> bool:
    return matched is not None and lead is not None and matched.low > 0.5 and lead.low > 0


def _too_few(name: str, n_unsafe: int, n_safe: int) -> str:
    return (
        f"{name} cannot be judged by labels of {n_unsafe} unsafe and {n_safe} safe rows: at least {LEAST_LABELS} of "
        "each are needed."
    )


def _control(name: str) -> str:
    return f"{name} is a control, which every method must beat. Do not decide by it."
