"""Side by side: one data set scored by every method asked for, with what each one finds, costs and agrees with.

All methods that read hidden states share one embedding of the rows. On labelled rows each score is measured beside the
controls; on any rows the rank correlations between the scores say which of them see the same thing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import Layer, score_column
from hf_safefilter.compare.comparison import Comparison, Entry, Lead
from hf_safefilter.decide.evaluate import Evaluation, evaluate, spearman
from hf_safefilter.decide.thresholds import labels_of, numbers_of
from hf_safefilter.engine.local import add_rank_average, embed_rows, score_rows
from hf_safefilter.errors import DataError, MissingError, ModelError, OptionError
from hf_safefilter.recipe import MethodChoice
from hf_safefilter.scores import CONTROLS, make_score, takes
from hf_safefilter.step import ROWS_PER_CALL

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)

RANK_AVERAGE = "rank_average"
_UNUSABLE = (DataError, MissingError, ModelError, OptionError)
_SHORT = 0.05  # seconds: what is over sooner is timed again, a neighbour's burst would be most of it
_Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class _Made:
    """A step that has scored the rows, and what that took in seconds (`cost`: per 1,000 rows)."""

    method: str
    layer: Layer | None
    step: Step
    fit: float
    cost: float

    @property
    def column(self) -> str:
        return score_column(self.method)


def compare_methods(
    ds: Dataset | DatasetDict,
    methods: Sequence[MethodChoice | str],
    embed: EmbedLayers,
    references: ReferenceIndex | None = None,
    *,
    label: str | None = None,
    unsafe: Any = "unsafe",
    cost_rows: int = 256,
    seed: int = 0,
) -> Comparison:
    """Score `ds` by several methods and measure them side by side; length and random are always among them.

    A method that lacks something (a fitted selector, references, a model), or that can score none of the rows, is left
    out and its reason kept.

    Args:
        ds: rows without the columns that this adds.
        methods: names, or names with options; "rank_average" is the mean rank over all other methods.
        embed: how rows are read. Where it names several layers, each method gets the one at which it tells the
            references apart best (`choose_layer`; no label of these rows is used), and those are read in one pass.
        references: read as `embed` reads, at all its layers.
        label: column of labels to measure against.
        unsafe: the label that means unsafe.
        cost_rows: rows, drawn at random, on which the cost is measured after the first few have warmed things up.
        seed: of that draw and of the bootstrap.

    Raises:
        OptionError: no methods, or one twice.
        DataError: no method could be used, the labels are not of both kinds, or a score is there already.
        MissingError: no such column of labels.
    """
    wanted, average = _wanted(methods)
    truth = None if label is None else labels_of(ds, label, unsafe)
    _require_free(ds, wanted, average)
    skipped: dict[str, str] = {}
    layers = _layers(wanted, embed, references, skipped)
    scored, reading = ds, None
    if layers:
        embed = replace(embed, layers=tuple(dict.fromkeys(layers.values())))
        scored = embed_rows(ds, embed)
        reading = _reading_seconds(embed, _sample(ds, cost_rows, seed))
    columns = dict(embed.columns) if embed.columns else None
    made: list[_Made] = []
    for choice in wanted:
        if choice.name in skipped:
            continue
        layer = layers.get(choice.name)
        try:
            begin = time.perf_counter()
            step = make_score(
                choice.name, choice.options, references=references, layer=layer, columns=columns, rows=scored
            )
            fit = time.perf_counter() - begin
            cost = _scoring_seconds(step, _sample(scored, cost_rows, seed))
            done = score_rows(scored, step)
            _require_scores(done, score_column(choice.name), truth)
        except _UNUSABLE as error:
            if choice.name in CONTROLS:
                raise
            logger.warning("%s is left out: %s", choice.name, error)
            skipped[choice.name] = error.fact
        else:
            scored = done
            made.append(_Made(choice.name, layer, step, fit, cost))
    _require_methods(made, skipped)
    if average:
        begin = time.perf_counter()
        scored, step = add_rank_average(scored, [one.column for one in made if one.method not in CONTROLS])
        fit = time.perf_counter() - begin
        made.append(_Made(RANK_AVERAGE, None, step, fit, _scoring_seconds(step, _sample(scored, cost_rows, seed))))
    made.sort(key=lambda one: one.method in CONTROLS)
    found = None
    if label is not None:
        found = evaluate(scored, label, unsafe=unsafe, scores=[one.column for one in made], columns=columns, seed=seed)
    steps = [embed, *(one.step for one in made)] if layers else [one.step for one in made]
    return _comparison(scored, made, steps, reading, skipped, found, truth)


def _wanted(methods: Sequence[MethodChoice | str]) -> tuple[list[MethodChoice], bool]:
    """The methods to make, the controls last, and whether their ranks are to be averaged."""
    names = [one if isinstance(one, str) else one.name for one in methods]
    if len(set(names)) < len(names):
        raise OptionError("a method is named twice", found=", ".join(names), fix="name each once")
    if not set(names) - {RANK_AVERAGE, *CONTROLS}:
        raise OptionError("there is no method to compare", fix="name some, e.g. larf, nearest and saft")
    choices = [
        MethodChoice.checked(name=one) if isinstance(one, str) else one for one in methods if one != RANK_AVERAGE
    ]
    controls = [MethodChoice(name=name) for name in CONTROLS if name not in names]
    return [*choices, *controls], RANK_AVERAGE in names


def _require_free(ds: Any, wanted: Sequence[MethodChoice], average: bool) -> None:
    """Raise for a score that is there already before an hour has gone into the others."""
    names = [*(choice.name for choice in wanted), *([RANK_AVERAGE] if average else [])]
    parts = ds.values() if isinstance(ds, Mapping) else [ds]
    taken = {column for part in parts for column in part.column_names} & {score_column(name) for name in names}
    if taken:
        raise DataError(
            f"the rows already have a column {min(taken)!r}", fix="rename or remove it: it would be written over"
        )


def _require_scores(scored: Any, column: str, truth: np.ndarray | None) -> None:
    """Raise where a score says nothing of these rows: one such would spoil the figures of all."""
    there = np.isfinite(numbers_of(scored, column))
    if not there.any():
        raise DataError("none of these rows could be scored", fix="look at the column that says why")
    if truth is not None and not np.isin([0, 1], truth[there]).all():
        raise DataError("only rows of one label could be scored", found=f"{int(there.sum())} of {len(there)} rows")


def _layers(
    wanted: Sequence[MethodChoice], embed: EmbedLayers, references: ReferenceIndex | None, skipped: dict[str, str]
) -> dict[str, Layer]:
    """The layer each method reads; methods for which none can be found are skipped."""
    from hf_safefilter.locate.cross_validation import LayerChoice, choose_layer, compares_with_references

    found: dict[str, Layer] = {}
    chosen: dict[str, LayerChoice] = {}
    for method in wanted:
        if "layer" not in takes(method.name):
            continue
        if "layer" in method.options or len(embed.layers) == 1:
            found[method.name] = method.options.get("layer", embed.layers[0])
            continue
        if references is None:
            skipped[method.name] = "without references its layer has to be named"
            continue
        by = method.name if compares_with_references(method.name) else "larf"
        if by not in chosen:
            chosen[by] = choose_layer(references, methods=(by,))
        if chosen[by].signal:
            found[method.name] = chosen[by].layer
        else:
            skipped[method.name] = "no layer tells the references apart better than chance"
    return found


def _require_methods(made: Sequence[_Made], skipped: Mapping[str, str]) -> None:
    if all(one.method in CONTROLS for one in made):
        raise DataError(
            "no method could be used",
            found="; ".join(f"{name}: {why}" for name, why in skipped.items()),
            fix="mend what is named above, or name other methods",
        )


def _comparison(
    scored: Any,
    made: Sequence[_Made],
    steps: Sequence[Step],
    reading: float | None,
    skipped: Mapping[str, str],
    found: Evaluation | None,
    truth: np.ndarray | None,
) -> Comparison:
    values = {one.column: numbers_of(scored, one.column) for one in made}
    length = values[score_column("length")]
    separations = {one.score: one for one in found.separations} if found is not None else {}
    leads = _leads(values, length, truth) if truth is not None else {}
    entries = tuple(
        Entry(
            method=one.method,
            column=one.column,
            layer=one.layer,
            scored=int(np.isfinite(values[one.column]).sum()),
            fit_seconds=one.fit,
            embed_seconds=reading if one.layer is not None else None,
            score_seconds=one.cost,
            length_rho=spearman(values[one.column], length),
            separation=separations.get(one.column),
            lead=leads.get(one.column),
        )
        for one in made
    )
    return Comparison(
        rows=len(length),
        label=found.label if found is not None else None,
        labelled=found.rows if found is not None else 0,
        unsafe=found.unsafe if found is not None else 0,
        entries=entries,
        agreement={one: {other: spearman(values[one], values[other]) for other in values} for one in values},
        skipped=skipped,
        scored=scored,
        steps=tuple(steps),
    )


def _leads(values: Mapping[str, np.ndarray], length: np.ndarray, truth: np.ndarray) -> dict[str, Lead]:
    found = {}
    for column, scores in values.items():
        used = np.isfinite(scores) & np.isfinite(length) & np.isfinite(truth)
        unsafe = truth[used] == 1
        if column != score_column("length") and min(unsafe.sum(), (~unsafe).sum()) > 1:
            found[column] = lead_over(scores[used], length[used], unsafe)
    return found


def lead_over(scores: np.ndarray, control: np.ndarray, unsafe: np.ndarray) -> Lead:
    """AUROC of `scores` minus that of `control`, with a 95 % interval that knows both come from the same rows.

    A control that is upside down is turned over first: what short answers give away is given away as well.

    Args:
        scores: finite, (n,).
        control: finite, (n,).
        unsafe: bool (n,), at least two of each kind.

    Source: DeLong, DeLong and Clarke-Pearson 1988; by ranks as in Sun and Xu 2014.
    """
    if _placements(control, unsafe)[0].mean() < 0.5:
        control = -control
    high, low = (
        one - other for one, other in zip(_placements(scores, unsafe), _placements(control, unsafe), strict=True)
    )
    value = float(high.mean())
    error = float(np.sqrt(high.var(ddof=1) / len(high) + low.var(ddof=1) / len(low)))
    return Lead(value, value - _Z * error, value + _Z * error)


def _placements(scores: np.ndarray, unsafe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each unsafe row the share of safe rows below it, for each safe row the share of unsafe rows above it.

    Ties count half. The mean of either is the AUROC.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    above, below = scores[unsafe], scores[~unsafe]
    return (
        (ranks[unsafe] - rankdata(above)) / len(below),
        1 - (ranks[~unsafe] - rankdata(below)) / len(above),
    )


def _sample(ds: Any, count: int, seed: int) -> pa.Table:
    """Up to `count` rows, drawn at random from the largest split, as an Arrow table."""
    part = max(ds.values(), key=len) if isinstance(ds, Mapping) else ds
    places = np.random.default_rng(seed).permutation(len(part))[:count]
    return part.select(np.sort(places)).with_format("arrow")[:]


def _reading_seconds(embed: EmbedLayers, sample: pa.Table) -> float:
    """Seconds that reading 1,000 rows takes; `vectors` looks nothing up in the row cache."""
    return _seconds(lambda table: embed.vectors(table.to_pylist()), sample)


def _scoring_seconds(step: Step, sample: pa.Table) -> float:
    """Seconds that `step` takes for 1,000 rows."""
    return _seconds(step, sample.drop_columns([name for name in step.produces() if name in sample.column_names]))


def _seconds(call: Callable[[pa.Table], Any], sample: pa.Table) -> float:
    """Seconds for 1,000 rows, in calls as large as `Dataset.map` makes them."""
    call(sample.slice(0, 8))  # loads models and opens references, which is not paid per row
    taken: list[float] = []
    while not taken or (taken[0] < _SHORT and len(taken) < 5):
        begin = time.perf_counter()
        for at in range(0, sample.num_rows, ROWS_PER_CALL):
            call(sample.slice(at, ROWS_PER_CALL))
        taken.append(time.perf_counter() - begin)
    return 1000 * min(taken) / max(1, sample.num_rows)
