"""Gathering what a card states from scored rows and the steps that scored them; the steps are put to the test."""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.decide.thresholds import numbers_of
from hf_safefilter.errors import MissingError, PublishError, SafefilterError
from hf_safefilter.publish.drop_reasons import by_split, reasons_of, row_ids
from hf_safefilter.publish.provenance import Check, Counts, Provenance, Selection, Share, Source, SourceSplit, portable
from hf_safefilter.step import Step, steps_made

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.select import IsSafe

_MOST_VALUES = 40
_MOST_CHAINS = 32
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_PACKAGES = ("datasets", "faiss-cpu", "huggingface_hub", "numpy", "pyarrow", "torch", "transformers")


def gather(
    scored: Dataset | DatasetDict,
    is_safe: IsSafe,
    *,
    license: str,
    source: str,
    source_revision: str | None = None,
    steps: Sequence[Step] | None = None,
    recipe: Mapping[str, Any] | None = None,
    layer_choice: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    effect: Mapping[str, Any] | None = None,
    check_rows: int = 8,
    witnesses: Sequence[tuple[Dataset, Sequence[int]]] | None = None,
) -> Provenance:
    """Everything a card states about a decision.

    Args:
        scored: the rows with the columns of all steps.
        is_safe: the decision.
        license: of the rows.
        source: where they come from.
        source_revision: its commit or digest.
        steps: what filled the columns, in order; default: among the steps constructed in this process, those that give
            the scores that are there (rows are scored again to find out; the newest first).
        recipe: of the run, if there was one.
        layer_choice: `LayerChoice.to_json()`.
        evaluation: `Evaluation.to_json()`.
        effect: `EffectReport.for_card()` of a study of this very decision.
        check_rows: how many rows are read and scored again from their text.
        witnesses: rows to do that with, each set with its places among the scored, where those have no text; `steps`
            are then given.

    Raises:
        PublishError: no licence or source; no rows; steps that are not known, or that do not give the scores there; an
            effect that was measured on another decision.
    """
    from hf_safefilter import __version__

    parts = by_split(scored)
    if not sum(map(len, parts.values())):
        raise PublishError("there are no rows", fix="check the source")
    if effect is not None:
        _require_same_decision(effect, is_safe, sum(map(len, parts.values())))
    scores = numbers_of(scored, is_safe.column)
    if steps is None:
        steps, check = _that_ran(scored, is_safe.column, scores, check_rows)
    else:
        check = _check(witnesses or _spread(scored, check_rows), steps, is_safe.column, scores, check_rows)
    added = [column for step in steps for column in step.produces()]
    reasons = {name: reasons_of(part, is_safe) for name, part in parts.items()}
    ids = {name: row_ids(part, _mapping(steps)) for name, part in parts.items()}
    indexes = _indexes(steps)
    return Provenance(
        tool=f"hf_safefilter {__version__}",
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        source=Source(
            name=portable(source.strip()),
            revision=source_revision,
            license=license.strip(),
            splits={name: SourceSplit(rows=len(ids[name]), row_ids=ids_digest(ids[name])) for name in parts},
        ),
        model=next((portable(step.describe()) for step in steps if hasattr(step, "describe")), None),
        layer_choice=layer_choice,
        references=[portable(index.summary()) for index in indexes],
        overlap=len({one for index in indexes for part in ids.values() for one in index.overlap(part)}),
        steps=[portable(step.record()) for step in steps],
        selection=Selection(
            column=is_safe.column,
            threshold=is_safe.threshold,
            threshold_hex=is_safe.threshold.hex(),
            rule=is_safe.rule,
        ),
        counts=_counts(parts, reasons),
        quantiles=_quantiles(scores),
        controls=_controls(scored, scores, _mapping(steps)),
        check=check,
        evaluation=evaluation,
        effect=portable(dict(effect)) if effect is not None else None,
        environment=_environment(),
        recipe=recipe,
        columns_added=added,
    ).checked()


def chains_behind(column: str) -> Iterator[list[Step]]:
    """The ways in which steps of this process can fill `column`: each a list of steps in order, the newest first.

    Raises:
        PublishError: no step of this process fills the column, or one that it needs.
    """
    try:
        made = steps_made(column)
    except MissingError as error:
        raise PublishError(error.fact, fix=error.fix) from error
    for step in reversed(made):
        for before in product(*(list(chains_behind(need)) for need in step.needs())):
            yield [*dict.fromkeys(one for chain in before for one in chain), step]


def _that_ran(scored: Any, column: str, scores: np.ndarray, rows: int) -> tuple[list[Step], Check]:
    """The steps of this process that give the scores that are there, found by scoring rows again."""
    refused: SafefilterError | None = None
    for chain in islice(chains_behind(column), _MOST_CHAINS):
        try:
            return chain, _check(_spread(scored, rows), chain, column, scores, rows)
        except SafefilterError as error:
            refused = error
    raise PublishError(
        f"no step constructed in this process gives the scores in column {column!r}",
        found=str(refused),
        fix="pass steps=[...]: the ones that really ran, in order",
    ) from refused


def _require_same_decision(effect: Mapping[str, Any], is_safe: IsSafe, rows: int) -> None:
    ours = {"column": is_safe.column, "threshold_hex": is_safe.threshold.hex(), "rows": rows}
    for name, value in ours.items():
        if effect.get(name) != value:
            raise PublishError(
                f"the effect was measured on another decision: its {name} differs",
                found=f"{effect.get(name)} instead of {value}",
                fix="run hf-safefilter effect on this decision",
            )


def ids_digest(ids: Sequence[str]) -> str:
    """``sha256:`` over the ids in order, a newline after each."""
    return "sha256:" + hashlib.sha256("".join(f"{one}\n" for one in ids).encode()).hexdigest()


def _mapping(steps: Sequence[Step]) -> dict[str, str] | None:
    reader = next((step for step in steps if hasattr(step, "describe")), None)
    return dict(reader.columns) if reader is not None and reader.columns else None


def _indexes(steps: Sequence[Step]) -> list[Any]:
    from hf_safefilter.references import references

    digests = dict.fromkeys(step.references for step in steps if hasattr(step, "references"))
    return [references(digest) for digest in digests]


def _counts(parts: Mapping[str, Dataset], reasons: Mapping[str, list[str]]) -> Counts:
    every = [reason for part in reasons.values() for reason in part]
    dropped = Counter(filter(None, every))
    by: dict[str, dict[str, Share]] = {"source": {}, "category": {}}
    for column, shares in by.items():
        if all(column in part.column_names for part in parts.values()):
            cells = [str(cell) for part in parts.values() for cell in part.with_format(None)[column][:]]
            shares.update(_shares(cells, every))
    return Counts(
        rows=len(every),
        kept=len(every) - sum(dropped.values()),
        dropped=sum(dropped.values()),
        by_reason=dict(dropped.most_common()),
        by_split={name: Share(rows=len(part), dropped=sum(map(bool, part))) for name, part in reasons.items()},
        by_source=by["source"],
        by_category=by["category"],
    )


def _shares(cells: Sequence[str], reasons: Sequence[str]) -> dict[str, Share]:
    """Share of each value, most frequent first; beyond the first few they are put together."""
    rows = Counter(cells)
    gone = Counter(cell for cell, reason in zip(cells, reasons, strict=True) if reason)
    shown = [value for value, _ in rows.most_common(_MOST_VALUES)]
    found = {value: Share(rows=rows[value], dropped=gone[value]) for value in shown}
    if len(rows) > len(shown):
        rest = [value for value in rows if value not in found]
        found[f"{len(rest)} others"] = Share(rows=sum(rows[v] for v in rest), dropped=sum(gone[v] for v in rest))
    return found


def _quantiles(scores: np.ndarray) -> dict[str, float]:
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        raise PublishError("no row could be scored", fix="look at column 'unscorable'")
    return {f"{at:g}": float(value) for at, value in zip(_QUANTILES, np.quantile(finite, _QUANTILES), strict=True)}


def _controls(scored: Any, scores: np.ndarray, columns: Mapping[str, str] | None) -> dict[str, float | None]:
    from hf_safefilter.decide.evaluate import control_scores, spearman

    found = control_scores(scored, columns)
    return {name: spearman(scores, values) for name, values in found.items()}


def _spread(scored: Any, rows: int) -> list[tuple[Dataset, list[int]]]:
    """Some rows of each split, spread evenly over all, with their places."""
    parts = by_split(scored).values()
    total = sum(map(len, parts))
    places = np.unique(np.linspace(0, total - 1, min(rows, total)).round().astype(int)).tolist()
    start, found = 0, []
    for part in parts:
        here = [place for place in places if start <= place < start + len(part)]
        found.append((part.select([place - start for place in here]), here))
        start += len(part)
    return found


def _check(
    witnesses: Sequence[tuple[Dataset, Sequence[int]]],
    steps: Sequence[Step],
    column: str,
    scores: np.ndarray,
    rows: int,
) -> Check:
    """Read and score a few rows again from their text, by the steps that the card is about to name."""
    tolerance = max(1e-3, 0.02 * float(np.nanstd(np.where(np.isfinite(scores), scores, np.nan))))
    worst, checked = 0.0, 0
    every = -(-sum(len(places) for _, places in witnesses) // rows)  # of those there are, so many are passed over
    for part, places in witnesses:
        here = list(range(0, len(places), max(1, every)))
        if here:
            again = _rescored(part.select(here), steps, column)
            there = scores[[places[at] for at in here]]
            if not np.array_equal(np.isfinite(again), np.isfinite(there)):
                worst = np.inf
            both = np.isfinite(again) & np.isfinite(there)
            worst = max(worst, float(np.abs(again - there)[both].max(initial=0.0)))
            checked += len(here)
    if worst > tolerance:
        raise PublishError(
            f"the steps named do not give the scores in column {column!r}",
            found=f"rows scored again differ by up to {worst:.3g} (tolerance {tolerance:.3g})",
            fix="pass steps=[...]: the ones that really ran, in order",
        )
    return Check(rows=checked, largest_difference=worst, tolerance=tolerance)


def _rescored(sample: Dataset, steps: Sequence[Step], column: str) -> np.ndarray:
    added = {name for step in steps for name in step.produces()}
    rows: dict[str, Any] = sample.remove_columns([n for n in sample.column_names if n in added]).with_format(None)[:]
    for step in steps:
        rows = rows | step(rows)
    return np.asarray(rows[column], dtype=np.float64)


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.system()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
