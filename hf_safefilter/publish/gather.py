"""Collect what a card states from scored rows and the steps that scored them, and check these steps."""

from __future__ import annotations

import datetime
import logging
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import ROW_ID, score_column
from hf_safefilter.decide.evaluate import control_scores
from hf_safefilter.decide.overlap import references_of
from hf_safefilter.decide.thresholds import numbers_of
from hf_safefilter.decide.verdict.rank_statistics import spearman
from hf_safefilter.errors import MissingError, PublishError, SafefilterError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.publish.drop_reasons import by_split, reasons_of, row_ids
from hf_safefilter.publish.provenance import (
    Added,
    Check,
    Counts,
    Decision,
    Provenance,
    Share,
    Source,
    SourceSplit,
    portable,
)
from hf_safefilter.publish.published_rows import ids_digest
from hf_safefilter.publish.rescoring import check_steps, random_samples
from hf_safefilter.publish.review_facts import kept_as_they_are, review_of
from hf_safefilter.publish.score_verdict import verdict_without_labels
from hf_safefilter.step import Step, steps_made

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.additions import Additions
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.decide.verdict import Verdict

logger = logging.getLogger(__name__)

_MOST_VALUES = 40
_LONGEST_NAME = 50  # characters of a source or category that is listed
_LONGEST_CELL = 4096
_OTHERS = "others"
_MOST_CHAINS = 32
_CHECKED, _CHECKED_OF_OTHERS = 8, 64
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_PACKAGES = ("datasets", "faiss-cpu", "huggingface_hub", "numpy", "pyarrow", "torch", "transformers")


def gather(
    scored: Dataset | DatasetDict,
    is_safe: IsSafe,
    *,
    license: str,
    source: str,
    source_revision: str | None = None,
    generator_model: str | None = None,
    steps: Sequence[Step] | None = None,
    recipe: Mapping[str, Any] | None = None,
    layer_choice: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    effect: Mapping[str, Any] | None = None,
    verdict: Verdict | None = None,
    anyway: bool = False,
    trusted_vectors: bool = False,
    name_reviewers: bool = False,
    additions: Additions | None = None,
    check_rows: int | None = None,
    samples: Sequence[tuple[Dataset, Sequence[int]]] | None = None,
) -> Provenance:
    """Everything that a card states about a decision.

    Args:
        scored: The rows with the columns of all steps.
        is_safe: The decision.
        license: Licence of the rows.
        source: Where the rows come from.
        source_revision: Commit or digest of the source.
        generator_model: The model that wrote the responses, or "people"; None: not known.
        steps: The steps that filled the columns, in order. None: those constructed in this process that give the same
            scores; rows are scored again to find them, by the newest steps first.
        recipe: Recipe of the run, if there was one.
        layer_choice: `LayerChoice.to_json()`.
        evaluation: `Evaluation.to_json()`.
        effect: `EffectReport.for_card()` of a study of this very decision.
        verdict: The verdict on the deciding score by labels. None, or one that has too few labels: the references of
            the score and the lengths of the rows judge it.
        anyway: Whether the user insists on publishing in spite of a bad verdict; the card says so.
        trusted_vectors: Whether a column of `scored` was filled on another machine, and is believed because the user
            says so; the card states it.
        name_reviewers: Whether the card names the people who decided on rows, and not their number alone.
        additions: Rows that are added to the kept ones.
        check_rows: Number of rows that are drawn at random, and read and scored again from their text; 8 if None, and
            64 of rows with `trusted_vectors`.
        samples: Where the scored rows have no text, rows to do that with, and their indices among the scored rows;
            then `steps` must be given.

    Raises:
        PublishError: The licence or the source is missing; there are no rows; the steps are not known or do not give
            these scores; or the effect was measured on another decision.
    """
    from hf_safefilter import __version__

    parts = by_split(scored)
    if not sum(map(len, parts.values())):
        raise PublishError("there are no rows", fix="check the source")
    if effect is not None:
        _require_same_decision(effect, is_safe, sum(map(len, parts.values())))
    scores = numbers_of(scored, is_safe.column)
    check_rows = check_rows or (_CHECKED_OF_OTHERS if trusted_vectors else _CHECKED)
    if steps is None:
        steps, check = _find_steps(scored, is_safe.column, check_rows)
    else:
        samples = samples or random_samples(scored, check_rows)
        check = check_steps(scored, samples, steps, is_safe.column, check_rows)
    added = [column for step in steps for column in step.produces()]
    reasons = {name: reasons_of(part, is_safe) for name, part in parts.items()}
    own = {name: part.remove_columns(ROW_ID) if trusted_vectors and ROW_ID in part.column_names else part
           for name, part in parts.items()}  # fmt: skip  # ids of others are not believed
    ids = {name: row_ids(part, _columns_option(steps)) for name, part in own.items()}
    indexes = references_of(steps)
    controls = control_scores(scored, _columns_option(steps))
    if verdict is None or verdict.finding == "too few labels":
        verdict = verdict_without_labels(is_safe.column, scores, controls[score_column("length")], steps)
    provenance = Provenance(
        tool=f"hf_safefilter {__version__}",
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        source=Source(
            name=portable(source.strip()),
            revision=source_revision,
            license=license.strip(),
            generator_model=None if generator_model is None else portable(generator_model.strip()),
            splits={name: SourceSplit(rows=len(ids[name]), row_ids=ids_digest(ids[name])) for name in parts},
        ),
        model=next((portable(step.describe()) for step in steps if hasattr(step, "describe")), None),
        layer_choice=_as_dict(layer_choice),
        references=[portable(index.summary()) for index in indexes],
        overlap=len({row_id for index in indexes for part in ids.values() for row_id in index.overlap(part)}),
        steps=[portable(step.record()) for step in steps],
        selection=Decision(
            column=is_safe.column,
            threshold=is_safe.threshold,
            threshold_hex=is_safe.threshold.hex(),
            rule=is_safe.rule,
            action=is_safe.action,
        ),
        counts=_counts(parts, reasons, is_safe),
        added=None if additions is None else _added(additions, parts, _columns_option(steps)),
        review=review_of(parts, is_safe, name_reviewers=name_reviewers),
        verdict=verdict.to_json(),
        anyway=anyway and verdict.bad,
        trusted_vectors=trusted_vectors,
        quantiles=_quantiles(scores),
        controls={name: spearman(scores, values) for name, values in controls.items()},
        check=check,
        evaluation=_as_dict(evaluation),
        effect=portable(_as_dict(effect)),
        environment=_environment(),
        recipe=_as_dict(recipe),
        columns_added=added,
    ).checked()
    if provenance.written_by_its_own_model():
        logger.warning("the model that is to be tuned wrote these rows: they may carry traits that no text shows")
    return provenance


def _added(additions: Additions, parts: Mapping[str, Dataset], columns: Mapping[str, str] | None) -> Added:
    return Added(
        rows=len(additions.rows),
        split=additions.split or next(iter(parts)),
        source=portable(additions.source),
        license=additions.license,
        by_category=dict(additions.by_category),
        row_ids=ids_digest(row_ids(additions.rows, columns)),
    )


def step_chains(column: str) -> Iterator[list[Step]]:
    """Each list of steps of this process, in order, that can fill `column`; the newest first.

    Raises:
        PublishError: No step of this process fills the column, or another one that it needs.
    """
    try:
        last_steps = steps_made(column)
    except MissingError as error:
        raise PublishError(error.fact, fix=error.fix) from error
    for last in reversed(last_steps):
        for chains in product(*(list(step_chains(need)) for need in last.needs())):
            yield [*dict.fromkeys(step for chain in chains for step in chain), last]


def _find_steps(scored: Dataset | DatasetDict, column: str, rows: int) -> tuple[list[Step], Check]:
    """The steps of this process that give these scores, found by scoring rows again."""
    last_error: SafefilterError | None = None
    for chain in islice(step_chains(column), _MOST_CHAINS):
        try:
            return chain, check_steps(scored, random_samples(scored, rows), chain, column, rows)
        except SafefilterError as error:
            last_error = error
    raise PublishError(
        f"no step constructed in this process gives the scores in column {column!r}",
        found=str(last_error),
        fix="pass `steps=...`: the steps that really ran, in order",
    ) from last_error


def _require_same_decision(effect: Mapping[str, Any], is_safe: IsSafe, rows: int) -> None:
    decision = {"column": is_safe.column, "threshold_hex": is_safe.threshold.hex(), "rows": rows,
                "decisions": is_safe.decisions_digest}  # fmt: skip
    for name, value in decision.items():
        if effect.get(name) != value:
            raise PublishError(
                f"the effect was measured on another decision: its {name} {'differ' if name[-1] == 's' else 'differs'}",
                found=f"{effect.get(name)} instead of {value}",
                fix="measure the effect of this decision: hf-safefilter effect --help",
            )


def _as_dict(mapping: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if mapping is None else dict(mapping)


def _columns_option(steps: Sequence[Step]) -> dict[str, str] | None:
    """Where things stand in a row, and what may go unread, according to the step that reads a model."""
    return next((step.mapping for step in steps if hasattr(step, "mapping")), None)


def _counts(parts: Mapping[str, Dataset], reasons: Mapping[str, list[str]], is_safe: IsSafe) -> Counts:
    all_reasons = [reason for part in reasons.values() for reason in part]
    dropped = Counter(filter(None, all_reasons))
    kept = len(all_reasons) - sum(dropped.values())
    tables: dict[str, dict[str, Share]] = {"source": {}, "category": {}}
    for column, shares in tables.items():
        if all(column in part.column_names for part in parts.values()):
            cells = [_clean(str(cell)) for part in parts.values() for cell in part.with_format(None)[column][:]]
            shares.update(_shares(cells, all_reasons))
    return Counts(
        rows=len(all_reasons),
        kept=kept,
        dropped=sum(dropped.values()),
        changed=kept - sum(kept_as_they_are(part, is_safe) for part in parts.values()),
        by_reason=dict(dropped.most_common()),
        by_split={name: Share(rows=len(part), dropped=sum(map(bool, part))) for name, part in reasons.items()},
        by_source=tables["source"],
        by_category=tables["category"],
    )


def _shares(cells: Sequence[str], reasons: Sequence[str]) -> dict[str, Share]:
    """Share of each value, the most frequent first; all that are no names of a kind of rows are added up.

    A long value, or one of a single row, may be text of that row, which must not be published with a dropped one.
    """
    rows = Counter(cells)
    dropped = Counter(cell for cell, reason in zip(cells, reasons, strict=True) if reason)
    names = [value for value, count in rows.most_common() if count > 1 and _is_name(value)][:_MOST_VALUES]
    shares = {value: Share(rows=rows[value], dropped=dropped[value]) for value in names}
    others = [value for value in rows if value not in shares]
    if others:
        shares[f"{len(others)} {_OTHERS}"] = Share(
            rows=sum(rows[value] for value in others), dropped=sum(dropped[value] for value in others)
        )
    return shares


def _clean(cell: str) -> str:
    """A cell as a card may show it; one so long is no name, whatever is taken out of it."""
    return shown(cell) if len(cell) <= _LONGEST_CELL else cell[:_LONGEST_CELL]


def _is_name(value: str) -> bool:
    return len(value) <= _LONGEST_NAME and "\n" not in value and not value.endswith(_OTHERS)


def _quantiles(scores: np.ndarray) -> dict[str, float]:
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        raise PublishError("no row could be scored", fix="read the reasons in the column 'unscorable'")
    return {f"{q:g}": float(value) for q, value in zip(_QUANTILES, np.quantile(finite, _QUANTILES), strict=True)}


def _environment() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.system()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
