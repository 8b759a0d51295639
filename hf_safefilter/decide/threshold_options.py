"""The options of a threshold, checked before any row is read: a mistake must not wait for hours of embedding."""

from __future__ import annotations

from typing import Any

from hf_safefilter.checks import require_choice, require_number, require_share, require_whole
from hf_safefilter.errors import OptionError

WAYS = ("drop_fraction", "drop_count", "threshold", "label", "known_good")
"""Options of which each is a way of finding a threshold."""

RULES = ("best_f1", "tpr_at_fpr")
"""Rules that find a threshold from labels."""

_GOES_WITH = {"rule": "label", "max_fpr": "label", "max_loss": "known_good", "confidence": "known_good"}


def checked_way(
    *,
    drop_fraction: Any = None,
    drop_count: Any = None,
    threshold: Any = None,
    label: Any = None,
    rule: Any = None,
    max_fpr: Any = None,
    known_good: Any = None,
    max_loss: Any = None,
    confidence: Any = None,
) -> str:
    """The way in which these options, as `threshold_for` takes them, find a threshold.

    Raises:
        OptionError: No way or several were passed, or an option makes no sense, whatever the rows are.
    """
    ways = dict(zip(WAYS, (drop_fraction, drop_count, threshold, label, known_good), strict=True))
    passed = [name for name, value in ways.items() if value is not None]
    if len(passed) != 1:
        choices = ", ".join(f"`{name}=...`" for name in WAYS)
        raise OptionError(f"exactly one of {choices} must be passed", found=f"given: {', '.join(passed) or 'none'}")
    way = passed[0]
    with_way = {"rule": rule, "max_fpr": max_fpr, "max_loss": max_loss, "confidence": confidence}
    for name, value in with_way.items():
        if value is not None and _GOES_WITH[name] != way:
            raise OptionError(f"{name} is used with {_GOES_WITH[name]}, not with {way}", fix=f"leave {name} out")
    if way == "drop_fraction":
        require_share("drop_fraction", drop_fraction, example=0.02)
    elif way == "drop_count":
        require_whole("drop_count", drop_count, least=1)
    elif way == "threshold":
        require_number("threshold", threshold)
    elif way == "label":
        _require_rule(rule, max_fpr)
    else:
        if max_loss is None or confidence is None:
            raise OptionError(
                "known_good needs max_loss and confidence", fix="pass for example `max_loss=0.05` and `confidence=0.95`"
            )
        require_share("max_loss", max_loss)
        require_share("confidence", confidence, example=0.95)
    return way


def _require_rule(rule: Any, max_fpr: Any) -> None:
    if rule is not None:
        require_choice("rule", rule, RULES)
    if rule == "best_f1" and max_fpr is not None:
        raise OptionError("max_fpr is used with tpr_at_fpr, not with best_f1", fix="pass `rule='tpr_at_fpr'`")
    if rule == "tpr_at_fpr" and max_fpr is None:
        raise OptionError("tpr_at_fpr needs the largest rate", fix="pass for example `max_fpr=0.05`")
    if max_fpr is not None:
        require_share("max_fpr", max_fpr)
