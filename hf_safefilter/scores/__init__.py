"""Scores: one float32 a row, higher = more dangerous to alignment, NaN where a row cannot be scored.

No score has a threshold (`decide` has them) and none imports another. **A new score is one new file and one line in
`METHODS`**: its class says by which name it is known, what it measures, what it requires and where it comes from, and
the recipe, the command line, `compare`, the tests of the contract and the table in the README read it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from hf_safefilter.columns import Layer
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.scores.base import Score

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
"""Name of a method -> its file here (or a module by its full name) and its class."""

CONTROLS = ("length", "random")
"""What any method must beat: every report shows them beside it."""


def method(name: str) -> type[Score]:
    """The class of a method's score.

    Raises:
        OptionError: there is no such method; the nearest name is suggested.
    """
    if name not in METHODS:
        near = get_close_matches(str(name), METHODS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise OptionError(f"there is no method {name!r}", found=", ".join(METHODS), fix=fix)
    module, kind = METHODS[name].split(":")
    score: type[Score] = getattr(import_module(module if "." in module else f"{__name__}.{module}"), kind)
    return score


def fitted_to(name: str, options: Mapping[str, Any]) -> str | None:
    """What `make` fits the method to before it can score, given these options: "rows" or "references"; else None.

    Raises:
        OptionError: there is no such method.
    """
    fitting = method(name).FITTING
    return fitting.to if fitting is not None and fitting.field not in options else None


def takes(name: str) -> set[str]:
    """Names of what a method can be given: the options of its score, and what that is fitted to.

    Raises:
        OptionError: there is no such method.
    """
    fitting = method(name).FITTING
    return {field.name for field in fields(method(name))} | ({fitting.to} if fitting is not None else set())


def make(name: str, **options: Any) -> Score:
    """The score of a method, from options by name as a recipe or a command line has them.

    A score that is fitted first takes either what was fitted (`saft`: ``subspace``, `gradient`: ``anchor``), or what it
    is fitted to (``rows``, ``references``) and the options of its fitting.

    Raises:
        OptionError: there is no such method, or an option that it does not have, or one is missing.
    """
    score = method(name)
    own = {field.name: field for field in fields(score) if field.init}
    fitting = score.FITTING
    if fitting is None or fitting.field in options:
        _require_options(name, options, list(own))
        return _called(name, score, options)
    _require_options(name, options, [*fitting.options, *own, fitting.to])
    if fitting.to not in options:
        raise OptionError(f"method {name!r} is fitted to {fitting.to}", fix=f"pass {fitting.to}=...")
    fitted = fitting.by(options[fitting.to], **{key: options[key] for key in fitting.options if key in options})
    return _called(name, score, {fitting.field: fitted} | {key: options[key] for key in own if key in options})


def make_score(
    name: str,
    options: Mapping[str, Any],
    *,
    references: ReferenceIndex | None = None,
    layer: Layer | None = None,
    columns: Mapping[str, str] | None = None,
    rows: Any = None,
) -> Score:
    """The score of a method that is given what it takes of what is at hand; `options` come before that.

    Args:
        name: of the method.
        options: as for `make`.
        references: the rows to compare with.
        layer: where rows and references were read.
        columns: where prompt and response stand, for rows of no known shape.
        rows: the embedded rows, for a score that is fitted to them; None while they are streamed.

    Raises:
        OptionError: as `make`; no references for a method that compares with some, or no rows to fit to.
    """
    wanted = takes(name)
    source = fitted_to(name, options)
    if source == "rows" and rows is None:
        raise OptionError(f"{name} is fitted on all rows and cannot be used while streaming", fix="streaming: false")
    if ("references" in {field.name for field in fields(method(name))} or source == "references") and (
        references is None and "references" not in options
    ):
        raise OptionError(f"{name} compares with references", fix="say which: --references FOLDER")
    given = {"references": references, "layer": layer, "columns": columns, "rows": rows}
    usable = {key: value for key, value in given.items() if key in wanted and value is not None}
    if source is None:  # what it would be fitted to has no place beside what was fitted
        usable = {key: value for key, value in usable.items() if key in {field.name for field in fields(method(name))}}
    return make(name, **usable | dict(options))


def _require_options(name: str, options: Mapping[str, Any], known: list[str]) -> None:
    unknown = next((key for key in options if key not in known), None)
    if unknown is not None:
        near = get_close_matches(unknown, known, n=1)
        raise OptionError(
            f"method {name!r} has no option {unknown!r}",
            found=", ".join(dict.fromkeys(known)),
            fix=f"did you mean {near[0]!r}?" if near else "remove it, or use one of these",
        )


def _called(name: str, score: type[Score], options: Mapping[str, Any]) -> Score:
    from dataclasses import MISSING

    required = [f.name for f in fields(score) if f.init and f.default is MISSING and f.default_factory is MISSING]
    missing = [key for key in required if key not in options]
    if missing:
        raise OptionError(f"method {name!r} lacks the option {missing[0]!r}", fix=f"it takes {', '.join(required)}")
    return score(**options)
