"""Scores: one float32 a row, higher = more dangerous to alignment, NaN where a row cannot be scored.

No score has a threshold (`select` has them), none imports another. A new method is one file and one line here.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from hf_safefilter.step import Step

METHODS: dict[str, str] = {
    "larf": "larf:LarfScore",
    "anchor": "anchors:AnchorScore",
    "nearest": "nearest:NearestScore",
    "direction": "direction:DirectionScore",
    "saft": "saft:SaftScore",
    "seal": "seal:SealScore",
    "gradient": "gradient:GradientScore",
    "guard": "guard:GuardScore",
    "rank_average": "rank_average:RankAverage",
    "length": "controls:LengthScore",
    "random": "controls:RandomScore",
}
"""Name of a method -> its module here and its step."""

CONTROLS = ("length", "random")
"""What any method must beat: every report shows them beside it."""


def method(name: str) -> type[Step]:
    """The step class of a method.

    Raises:
        OptionError: no such method; the nearest name is suggested.
    """
    if name not in METHODS:
        near = get_close_matches(str(name), METHODS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise OptionError(f"there is no method {name!r}", found=", ".join(METHODS), fix=fix)
    module, step = METHODS[name].split(":")
    return getattr(import_module(f"{__name__}.{module}"), step)


def make(name: str, **options: Any) -> Step:
    """The step of a method from options by name, as a recipe or a command line has them.

    `larf`, `anchor`, `nearest` and `direction` take `references` and `layer`; `length` takes `columns`; `saft` takes
    `layer` and either a fitted `subspace`, or the embedded `rows` and the options of `fit_saft`; `seal` takes a fitted
    `selector`.

    Raises:
        OptionError: no such method, or an option that it does not have, or lacks.
    """
    step = method(name)
    if name == "saft" and "rows" in options:
        from hf_safefilter.scores.saft import fit_saft

        _check(name, fit_saft, {"ds": options["rows"]} | {k: v for k, v in options.items() if k != "rows"})
        layer = options["layer"]
        return step(fit_saft(options.pop("rows"), **options), layer)
    _check(name, step, options)
    return step(**options)


def _check(name: str, call: Any, options: dict[str, Any]) -> None:
    signature = inspect.signature(call)
    unknown = [key for key in options if key not in signature.parameters]
    if unknown:
        raise OptionError(
            f"method {name!r} has no option {unknown[0]!r}",
            found=", ".join(signature.parameters),
            fix="remove it, or use one of these",
        )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise OptionError(f"method {name!r}: {error}", fix=f"it takes {', '.join(signature.parameters)}") from error
