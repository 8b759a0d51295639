"""select: decide which rows are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_safefilter.cli import completion
from hf_safefilter.cli.arguments import Anyway, Folder, Output, TrustVectors
from hf_safefilter.errors import MissingError, OptionError

if TYPE_CHECKING:
    from hf_safefilter.cli.output import Printer
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.decide.verdict import Verdict
    from hf_safefilter.pipeline.difference import Difference
    from hf_safefilter.saved.saved_rows import Saved

EXAMPLE = "hf-safefilter select scored --by larf_score --drop-fraction 0.02 --output decided"


def select(
    context: typer.Context,
    scored: Folder,
    by: Annotated[
        str,
        typer.Option(
            help="Score column or method to decide by, or a column of pair shifts.", autocompletion=completion.scores
        ),
    ],
    output: Output,
    drop_fraction: Annotated[float | None, typer.Option(help="Drop this share of the scored rows.")] = None,
    drop_count: Annotated[int | None, typer.Option(help="Drop this many rows.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Drop rows that score this or more.")] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="Column of labels: the verdict is by them; and the threshold, if no other is given.",
            autocompletion=completion.columns,
        ),
    ] = None,
    unsafe: Annotated[str, typer.Option(help="Label that means unsafe.")] = "unsafe",
    rule: Annotated[str | None, typer.Option(help="best_f1 or tpr_at_fpr.")] = None,
    max_fpr: Annotated[float | None, typer.Option(help="Largest false-positive rate, for tpr_at_fpr.")] = None,
    known_good: Annotated[
        str | None, typer.Option(help="Rows known to be good, for a threshold with a guarantee.")
    ] = None,
    max_loss: Annotated[float | None, typer.Option(help="Largest share of such rows that may be lost.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Confidence that this share is not exceeded.")] = None,
    action: Annotated[
        str, typer.Option(help="drop; switch: exchange chosen and rejected (by a pair shift); mask: weight 0.")
    ] = "drop",
    decisions: Annotated[
        Path | None, typer.Option(help="What people decided on single rows, which goes before the score; see review.")
    ] = None,
    add_refusals: Annotated[
        int | None, typer.Option(min=1, help="Add this many refusals of what was dropped, marked by the column added.")
    ] = None,
    refusals: Annotated[
        str | None, typer.Option(help="Rows to choose them from; those of the starter set if left out.")
    ] = None,
    refusals_license: Annotated[str | None, typer.Option(help="Licence of these rows.")] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Only say how this differs from the decision that is in the folder.")
    ] = False,
    anyway: Anyway = False,
    trust_vectors: TrustVectors = False,
) -> None:
    """Decide which rows to keep; writes kept/ and dropped/ (`save_to_disk` folders) and the decision.

    The exit code is 3 if something speaks against the score: the folder is there, and should not be used.
    """
    from hf_safefilter.columns import PAIR_SHIFT
    from hf_safefilter.decide.additions import RefusalsToAdd
    from hf_safefilter.decide.row_decisions import RowDecisions
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.pipeline.by_people import choose_additions
    from hf_safefilter.pipeline.decision_rule import decide_threshold, options_of
    from hf_safefilter.pipeline.stored_decision import deciding_column
    from hf_safefilter.publish.drop_reasons import by_split
    from hf_safefilter.publish.review_facts import review_of
    from hf_safefilter.recipe import SelectionRule
    from hf_safefilter.saved.decision import write_decision
    from hf_safefilter.saved.saved_rows import load_rows_with_steps

    if add_refusals is None and (refusals is not None or refusals_license is not None):
        raise OptionError("there is no number of refusals to add", fix="name it: `add_refusals=50`")
    ways = (drop_fraction, drop_count, threshold, known_good)
    only_measures = label is not None and any(way is not None for way in ways) and rule is None
    options = {"drop_fraction": drop_fraction, "drop_count": drop_count, "threshold": threshold,
               "label": None if only_measures else label,
               "rule": rule, "max_fpr": max_fpr, "known_good": known_good, "max_loss": max_loss,
               "confidence": confidence, "unsafe": unsafe, "action": action}  # fmt: skip
    on = "pair_shift" if by.endswith(PAIR_SHIFT) else "score"
    selection = SelectionRule.checked(on=on, **{name: value for name, value in options.items() if value is not None})
    by_people = None if decisions is None else RowDecisions.read(decisions)
    saved = load_rows_with_steps(scored, trust_vectors=trust_vectors)
    by = deciding_column(saved, by)
    to_add = None if add_refusals is None else RefusalsToAdd.of(add_refusals, refusals, refusals_license)
    changes = selection.action != "drop" or by_people is not None
    columns = next((step.mapping for step in saved.steps if changes and hasattr(step, "mapping")), None)
    is_safe = IsSafe(
        by, decide_threshold(saved.rows, by, selection, saved.steps), action=selection.action, columns=columns,
        decisions=by_people,
    )  # fmt: skip
    review = review_of(by_split(saved.rows), is_safe)
    difference = _difference(context.obj, output, saved, is_safe, trust_vectors)
    if preview:
        if difference is None:
            raise MissingError(f"{output} holds no decision to compare with", fix="leave out --preview")
        moves = [move.to_json() for move in difference.moves]
        facts = {"threshold": is_safe.threshold, "rule": is_safe.rule, **difference.counts(), "rows": moves}
        context.obj.report(facts, ids=[json.dumps(move) for move in moves])
        return
    verdict = _verdict(saved, by, label, unsafe)
    parts = write_decision(output, saved, is_safe, verdict, selection=options_of(selection), anyway=anyway,
                           additions=choose_additions(to_add, saved.rows, is_safe, saved.steps))  # fmt: skip
    facts = {"kept": parts.n_kept, "dropped": parts.n_dropped, "threshold": is_safe.threshold, "rule": is_safe.rule}
    if to_add is not None:
        facts["added"] = to_add.count
    if review is not None:
        facts["by people"] = review.model_dump(include={"decided", "kept", "dropped", "masked", "rows", "agreed"})
    context.obj.judged(
        verdict,
        {"output": str(output)} | facts,
        anyway=anyway,
        ids=[str(output / "kept")],
        hint=f"hf-safefilter card {output} --license LICENSE --source SOURCE --output out",
        instead=f"hf-safefilter evaluate {scored} --label COLUMN",
    )


def _difference(
    printer: Printer, output: Path, saved: Saved, is_safe: IsSafe, trust_vectors: bool
) -> Difference | None:
    """How a decision differs from the one that it will replace, which is said; None: there is none."""
    from hf_safefilter.errors import SafefilterError
    from hf_safefilter.pipeline.difference import Difference, Selection
    from hf_safefilter.saved.decision import DECISION

    if not (output / DECISION).is_file():
        return None
    try:
        before = Selection.open(output, trust_vectors=trust_vectors)
    except SafefilterError as error:
        printer.note(f"the earlier decision in {output} cannot be read: {error.fact}", warning=True)
        return None
    difference = Difference.between(before, Selection.of_rows(saved.rows, is_safe))
    printer.note(f"compared with the decision in {output}: {difference.sentence()}")
    return difference


def _verdict(saved: Saved, column: str, label: str | None, unsafe: str) -> Verdict:
    """The verdict on a column: by labels, or, without them or with too few, by its references and the lengths."""
    from hf_safefilter.columns import score_column
    from hf_safefilter.decide.evaluate import control_scores, verdict_by_labels
    from hf_safefilter.decide.overlap import apart_from_references
    from hf_safefilter.decide.thresholds import numbers_of
    from hf_safefilter.publish.score_verdict import verdict_without_labels

    if label is not None:
        measured = apart_from_references(saved.rows, saved.steps)
        verdict = verdict_by_labels(measured, column, label, unsafe, saved.mapping)
        if verdict.finding != "too few labels":
            return verdict
    lengths = control_scores(saved.rows, saved.mapping)[score_column("length")]
    return verdict_without_labels(column, numbers_of(saved.rows, column), lengths, saved.steps)
