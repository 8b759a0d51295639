"""Scores: one float32 a row, higher = more dangerous to alignment, NaN where a row cannot be scored.

No score has a threshold (`select` has them), none imports another. A new method is one file and one line here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
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

FITTED: dict[str, tuple[str, str]] = {
    "saft": ("rows", "saft:fit_saft"),
    "gradient": ("references", "gradient:fit_to_references"),
}
"""Methods whose first option is a fitted thing -> what it is fitted to, where none is given, and what fits it."""

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
    return _named(METHODS[name])


def fitted_to(name: str, options: Mapping[str, Any]) -> str | None:
    """What `make` has to fit the method to first, given these `options`: "rows" or "references"; None: to nothing.

    Raises:
        OptionError: no such method.
    """
    return FITTED[name][0] if name in FITTED and fields(method(name))[0].name not in options else None


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"{__name__}.{module}"), name)


def make(name: str, **options: Any) -> Step:
    """The step of a method from options by name, as a recipe or a command line has them.

    `larf`, `anchor`, `nearest` and `direction` take `references` and `layer`; `length` takes `columns`; `guard` takes
    the guard's `model`; `seal` takes a fitted `selector`. `saft` takes `layer` and either a fitted `subspace`, or the
    embedded `rows` and the options of `fit_saft`; `gradient` either a fitted `anchor`, or `references` and the options
    of `fit_to_references`.

    Raises:
        OptionError: no such method, or an option that it does not have, or lacks.
    """
    step = method(name)
    if fitted_to(name, options) is None:
        _check(name, step, options)
        return step(**options)
    source, place = FITTED[name]
    fit = _named(place)
    start, *parameters = inspect.signature(fit).parameters
    mine = {one.name for one in fields(step) if one.init}
    told = {key: value for key, value in options.items() if key in parameters or key not in mine}
    _check(name, fit, {start if key == source else key: value for key, value in told.items()})
    found = fit(options[source], **{key: value for key, value in told.items() if key != source})
    return step(found, **{key: value for key, value in options.items() if key in mine})


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
