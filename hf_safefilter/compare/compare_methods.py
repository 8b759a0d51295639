"""Comparing methods: one data set is scored by each of them, and what they find, cost and agree on is measured.

All methods that read hidden states share one embedding of the rows. On labelled rows each score is measured next to the
controls; on any rows the rank correlations between the scores show which of them measure the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import Layer, answer_key, score_column
from hf_safefilter.compare.comparison import Comparison, Entry
from hf_safefilter.data.splits import require_free
from hf_safefilter.decide.evaluate import Evaluation, evaluate
from hf_safefilter.decide.overlap import apart_from_references, warn_of_overlap
from hf_safefilter.decide.thresholds import labels_of, numbers_of
from hf_safefilter.decide.verdict.rank_statistics import spearman
from hf_safefilter.engine.local import add_ranks, embed_rows, score_rows
from hf_safefilter.errors import DataError, MissingError, ModelError, OptionError
from hf_safefilter.publish.score_verdict import verdict_without_labels
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
_SHORT = 0.05  # seconds: shorter calls are timed again, because other processes would dominate the time


@dataclass(frozen=True, slots=True)
class _ScoredMethod:
    """A method that has scored the rows: its step, and its time in seconds (`score_seconds`: for 1,000 rows)."""

    method: str
    layer: Layer | None
    step: Step
    fit_seconds: float
    score_seconds: float

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
    unsafe: str | int | bool = "unsafe",
    cost_rows: int = 256,
    seed: int = 0,
) -> Comparison:
    """Score `ds` by several methods and measure them; the controls, length and random, are always among them.

    A method that lacks something (a fitted selector, references, a model), or that can score none of the rows, is left
    out, and the reason is reported.

    Args:
        ds: Rows without the columns that are added.
        methods: Names, or names with options; "rank_average" is the mean rank over all other methods.
        embed: How rows are read. If it has several layers, each method uses the one at which it separates the
            references best (`choose_reading`; no label of these rows is used), the probe perhaps several, and all of
            these layers are read in one pass.
        references: References that were read as `embed` reads, at all its layers.
        label: Name of the column of labels to measure against.
        unsafe: The label value that means unsafe.
        cost_rows: Number of rows, drawn at random, on which the cost is measured; the first few are a warm-up.
        seed: Seed of that draw and of the bootstrap.

    Raises:
        OptionError: There is no method, or one is named twice.
        DataError: No method could be used, there are not labels of both kinds, or a score column exists already.
        MissingError: The column of labels is missing.
    """
    choices, average = _choices(methods)
    truth = None if label is None else labels_of(ds, label, unsafe)
    names = [choice.name for choice in choices] + ([RANK_AVERAGE] if average else [])
    require_free(ds, [score_column(name) for name in names])
    skipped: dict[str, str] = {}
    layers = _layers(choices, embed, references, skipped)
    scored, embed_seconds = ds, None
    if layers:
        answers = [answer_key(layer) for read in layers.values() for layer in read]
        embed = replace(embed, layers=tuple(dict.fromkeys(answers)))
        scored = embed_rows(ds, embed)
        embed_seconds = _embed_seconds(embed, _sample(ds, cost_rows, seed))
    columns = embed.mapping
    methods_used: list[_ScoredMethod] = []
    for choice in choices:
        if choice.name in skipped:
            continue
        read = layers.get(choice.name, ())
        try:
            began = time.perf_counter()
            step = make_score(
                choice.name,
                choice.options,
                references=references,
                layer=read[0] if read else None,
                layers=read or None,
                columns=columns,
                rows=scored,
            )
            fit_seconds = time.perf_counter() - began
            score_seconds = _score_seconds(step, _sample(scored, cost_rows, seed))
            extended = score_rows(scored, step)
            _require_scores(extended, score_column(choice.name), truth)
        except _UNUSABLE as error:
            if choice.name in CONTROLS:
                raise
            logger.warning("%s is left out: %s", choice.name, error)
            skipped[choice.name] = error.fact
        else:
            scored = extended
            methods_used.append(_ScoredMethod(choice.name, _shown(read), step, fit_seconds, score_seconds))
    _require_methods(methods_used, skipped)
    if average:
        began = time.perf_counter()
        scored, rank = add_ranks(scored, [used.column for used in methods_used if used.method not in CONTROLS])
        fit_seconds = time.perf_counter() - began
        score_seconds = _score_seconds(rank, _sample(scored, cost_rows, seed))
        methods_used.append(_ScoredMethod(RANK_AVERAGE, None, rank, fit_seconds, score_seconds))
    methods_used.sort(key=lambda used: used.method in CONTROLS)
    evaluation = None
    steps: list[Step] = [*([embed] if layers else []), *(used.step for used in methods_used)]
    warn_of_overlap(scored, steps)
    if label is not None:
        scores = [used.column for used in methods_used]
        measured = apart_from_references(scored, steps)
        evaluation = evaluate(measured, label, unsafe=unsafe, scores=scores, columns=columns, seed=seed)
    return _comparison(scored, methods_used, steps, embed_seconds, skipped, evaluation)


def _choices(methods: Sequence[MethodChoice | str]) -> tuple[list[MethodChoice], bool]:
    """The methods to use, the controls last, and whether their ranks are averaged."""
    names = [method if isinstance(method, str) else method.name for method in methods]
    if len(set(names)) < len(names):
        raise OptionError("a method is named twice", found=", ".join(names), fix="name each method once")
    if not set(names) - {RANK_AVERAGE, *CONTROLS}:
        raise OptionError("there is no method to compare", fix="name some, e.g. larf, nearest and saft")
    choices = [
        MethodChoice.checked(name=method) if isinstance(method, str) else method
        for method in methods
        if method != RANK_AVERAGE
    ]
    controls = [MethodChoice(name=name) for name in CONTROLS if name not in names]
    return [*choices, *controls], RANK_AVERAGE in names


def _require_scores(scored: Dataset | DatasetDict, column: str, truth: np.ndarray | None) -> None:
    """Raise if a score cannot be measured on these rows, which would make it impossible to measure the others."""
    finite = np.isfinite(numbers_of(scored, column))
    if not finite.any():
        raise DataError("none of these rows could be scored", fix="see the column with the reasons")
    if truth is not None and not np.isin([0, 1], truth[finite]).all():
        raise DataError("only rows of one label could be scored", found=f"{int(finite.sum())} of {len(finite)} rows")


def _shown(layers: Sequence[Layer]) -> Layer | None:
    """The layers of a method as a table names them."""
    return layers[0] if len(layers) == 1 else ",".join(map(str, layers)) or None


def _layers(
    choices: Sequence[MethodChoice], embed: EmbedLayers, references: ReferenceIndex | None, skipped: dict[str, str]
) -> dict[str, tuple[Layer, ...]]:
    """The layers that each method reads; methods for which none can be found are added to `skipped`."""
    from hf_safefilter.locate.choose_reading import PROBE, ReadingChoice, choose_reading, goes_by_references

    layers: dict[str, tuple[Layer, ...]] = {}
    readings: dict[str, ReadingChoice] = {}
    for method in choices:
        accepted = {"layer", "layers"} & takes(method.name)
        if not accepted:
            continue
        if named := accepted & set(method.options):
            value = method.options[named.pop()]
            layers[method.name] = (value,) if isinstance(value, (int, str)) else tuple(value)
            continue
        if len(embed.layers) == 1:
            layers[method.name] = embed.layers
            continue
        if references is None:
            skipped[method.name] = "without references its layer must be named"
            continue
        criterion = method.name if goes_by_references(method.name) else PROBE
        if criterion not in readings:
            try:
                readings[criterion] = choose_reading(references, methods=(criterion,))
            except DataError as error:
                skipped[method.name] = error.fact
                continue
        choice = readings[criterion]
        if choice.signal:
            layers[method.name] = choice.layers if "layers" in accepted else (choice.layer,)
        else:
            skipped[method.name] = "no layer separates the references better than chance"
    return layers


def _require_methods(methods: Sequence[_ScoredMethod], skipped: Mapping[str, str]) -> None:
    if all(method.method in CONTROLS for method in methods):
        raise DataError(
            "no method could be used",
            found="; ".join(f"{name}: {reason}" for name, reason in skipped.items()),
            fix="correct what is stated above, or name other methods",
        )


def _comparison(
    scored: Dataset | DatasetDict,
    methods: Sequence[_ScoredMethod],
    steps: Sequence[Step],
    embed_seconds: float | None,
    skipped: Mapping[str, str],
    evaluation: Evaluation | None,
) -> Comparison:
    values = {method.column: numbers_of(scored, method.column) for method in methods}
    length = values[score_column("length")]
    separations = {item.score: item for item in evaluation.separations} if evaluation is not None else {}
    verdicts = {name: item.verdict for name, item in separations.items()}
    for name, scores in values.items():
        if name not in verdicts or verdicts[name].finding == "too few labels":
            verdicts[name] = verdict_without_labels(name, scores, length, steps)
    entries = tuple(
        Entry(
            method=method.method,
            column=method.column,
            layer=method.layer,
            scored=int(np.isfinite(values[method.column]).sum()),
            fit_seconds=method.fit_seconds,
            embed_seconds=embed_seconds if method.layer is not None else None,
            score_seconds=method.score_seconds,
            length_rho=spearman(values[method.column], length),
            verdict=verdicts[method.column],
            separation=separations.get(method.column),
        )
        for method in methods
    )
    return Comparison(
        rows=len(length),
        label=evaluation.label if evaluation is not None else None,
        labelled=evaluation.rows if evaluation is not None else 0,
        unsafe=evaluation.unsafe if evaluation is not None else 0,
        entries=entries,
        agreement={left: {right: spearman(values[left], values[right]) for right in values} for left in values},
        skipped=skipped,
        scored=scored,
        steps=tuple(steps),
    )


def _sample(ds: Dataset | DatasetDict, count: int, seed: int) -> pa.Table:
    """Up to `count` rows, drawn at random from the largest split, as an Arrow table."""
    part = max(ds.values(), key=len) if isinstance(ds, Mapping) else ds
    rows = np.random.default_rng(seed).permutation(len(part))[:count]
    return part.select(np.sort(rows)).with_format("arrow")[:]


def _embed_seconds(embed: EmbedLayers, sample: pa.Table) -> float:
    """Seconds for reading 1,000 rows, the row cache aside."""
    return _seconds(lambda table: embed.vectors(table.to_pylist(), fresh=True), sample)


def _score_seconds(step: Step, sample: pa.Table) -> float:
    """Seconds for scoring 1,000 rows with `step`."""
    return _seconds(step, sample.drop_columns([name for name in step.produces() if name in sample.column_names]))


def _seconds(call: Callable[[pa.Table], Any], sample: pa.Table) -> float:
    """Seconds of `call` for 1,000 rows, in calls of the size that engines make."""
    call(sample.slice(0, 8))  # loads models and opens references, which is no cost of a row
    times: list[float] = []
    while not times or (times[0] < _SHORT and len(times) < 5):
        began = time.perf_counter()
        for start in range(0, sample.num_rows, ROWS_PER_CALL):
            call(sample.slice(start, ROWS_PER_CALL))
        times.append(time.perf_counter() - began)
    return 1000 * min(times) / max(1, sample.num_rows)
