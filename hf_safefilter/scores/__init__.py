"""Scores: one float32 a row, higher = more dangerous to alignment, NaN where a row cannot be scored.

No score has a threshold (see `decide`), and none imports another. **A new score is one new file and one line in
`METHODS`**: its class states its name, what it measures, what it requires and where it comes from. The recipe, the
command line, `compare`, the tests of the contract and the table in the README read these from the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.columns import Layer
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.scores.base import Score

METHODS: dict[str, str] = {
    "larf": "larf:LarfScore",
    "anchor": "anchors:AnchorScore",
    "nearest": "nearest:NearestScore",
    "direction": "direction:DirectionScore",
    "ensemble": "probe:EnsembleScore",
    "probe": "probe:ProbeScore",
    "shift": "shift:ShiftScore",
    "saft": "saft:SaftScore",
    "seal": "seal:SealScore",
    "gradient": "gradient:GradientScore",
    "self_influence": "gradient:SelfInfluenceScore",
    "guard": "guard:GuardScore",
    "token_risk": "token_risk:TokenRiskScore",
    "rank_average": "rank_average:RankAverage",
    "largest_rank": "largest:LargestRank",
    "largest_deviation": "largest:LargestDeviation",
    "length": "controls:LengthScore",
    "random": "controls:RandomScore",
}
"""Name of a method -> file in this folder (or full name of a module) and class."""

COMBINED = ("rank_average", "largest_rank", "largest_deviation")
"""Methods that combine the scores of others."""

CONTROLS = ("length", "random")
"""Methods that every other must beat: each report shows them too."""


def method(name: str) -> type[Score]:
    """The class of a method's score.

    Raises:
        OptionError: There is no such method; the most similar name is suggested.
    """
    if name not in METHODS:
        similar = get_close_matches(str(name), METHODS, n=1)
        fix = f"did you mean {similar[0]!r}?" if similar else "use one of these"
        raise OptionError(f"there is no method {name!r}", found=", ".join(METHODS), fix=fix)
    module, class_name = METHODS[name].split(":")
    score: type[Score] = getattr(import_module(module if "." in module else f"{__name__}.{module}"), class_name)
    return score


def _fields_of(score: type[Score]) -> tuple[Field[Any], ...]:
    from hf_safefilter.step import fields_of  # brings NumPy and Arrow, which nobody needs for the names above

    return fields_of(score)


def fitted_to(name: str, options: Mapping[str, Any]) -> str | None:
    """What `make` would fit the method to, given these options: "rows", "references", or None if it is not fitted.

    Raises:
        OptionError: There is no such method.
    """
    fitting = method(name).FITTING
    return fitting.to if fitting is not None and fitting.field not in options else None


def takes(name: str) -> set[str]:
    """Names of what a method accepts: the options of its score, and what the score is fitted to.

    Raises:
        OptionError: There is no such method.
    """
    fitting = method(name).FITTING
    fitted = {fitting.to, *({"layers"} & set(fitting.options))} if fitting is not None else set()
    return {field.name for field in _fields_of(method(name))} | fitted


def make(name: str, **options: Any) -> Score:
    """The score of a method, from options by name, as a recipe or a command line states them.

    A score that must be fitted takes either the fitted artefact (`saft`: ``subspace``, `gradient`: ``anchor``), or what
    it is fitted to (``rows``, ``references``) and the options of the fit.

    Raises:
        OptionError: There is no such method, an option is unknown, or a required one is missing.
    """
    score = method(name)
    own = {field.name: field for field in _fields_of(score) if field.init}
    fitting = score.FITTING
    if fitting is None or fitting.field in options:
        _require_options(name, options, list(own))
        return _constructed(name, score, options)
    _require_options(name, options, [*fitting.options, *own, fitting.to])
    if fitting.to not in options:
        raise OptionError(f"method {name!r} is fitted to {fitting.to}", fix=f"pass `{fitting.to}=...`")
    for key in fitting.required:
        if key not in options:
            raise OptionError(f"method {name!r} lacks the option {key!r}", fix=f"pass `{key}=...`")
    fitted = fitting.by(options[fitting.to], **{key: options[key] for key in fitting.options if key in options})
    return _constructed(name, score, {fitting.field: fitted} | {key: options[key] for key in own if key in options})


def make_score(
    name: str,
    options: Mapping[str, Any],
    *,
    references: ReferenceIndex | None = None,
    layer: Layer | None = None,
    layers: Sequence[Layer] | None = None,
    columns: Mapping[str, str] | None = None,
    rows: Dataset | DatasetDict | None = None,
) -> Score:
    """The score of a method from its options and from those of the other arguments that it accepts.

    Args:
        name: Name of the method.
        options: Options as for `make`; they take precedence over the other arguments.
        references: The references to compare with.
        layer: The layer at which rows and references were read.
        layers: The layers, for a score that reads several; `layer` alone if left out.
        columns: Columns of prompt and response, for rows of no known shape.
        rows: The embedded rows, for a score that is fitted to them; None while they are streamed.

    Raises:
        OptionError: As for `make`; or there are no references for a method that needs them, or no rows to fit to.
    """
    own = {field.name for field in _fields_of(method(name))}
    source = fitted_to(name, options)
    if source == "rows" and rows is None:
        raise OptionError(
            f"{name} is fitted to all rows and cannot be used while they are streamed",
            fix="read the rows without streaming: `streaming=False`",
        )
    if ("references" in own or source == "references") and references is None and "references" not in options:
        raise OptionError(f"{name} compares with references", fix="pass `references=...`")
    if layers is None and layer is not None:
        layers = (layer,)
    values = {"references": references, "layer": layer, "layers": layers, "columns": columns, "rows": rows}
    # A score whose fitted artefact is among the options does not accept what it would be fitted to.
    accepted = takes(name) if source is not None else own
    usable = {key: value for key, value in values.items() if key in accepted and value is not None}
    return make(name, **usable | dict(options))


def _require_options(name: str, options: Mapping[str, Any], known: list[str]) -> None:
    unknown = next((key for key in options if key not in known), None)
    if unknown is not None:
        similar = get_close_matches(unknown, known, n=1)
        raise OptionError(
            f"method {name!r} has no option {unknown!r}",
            found=", ".join(dict.fromkeys(known)),
            fix=f"did you mean {similar[0]!r}?" if similar else "remove it, or use one of these",
        )


def _constructed(name: str, score: type[Score], options: Mapping[str, Any]) -> Score:
    required = [f.name for f in _fields_of(score) if f.init and f.default is MISSING and f.default_factory is MISSING]
    missing = [key for key in required if key not in options]
    if missing:
        raise OptionError(f"method {name!r} lacks the option {missing[0]!r}", fix=f"it takes {', '.join(required)}")
    return score(**options)
