"""select: decide which rows are kept."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_safefilter.cli.arguments import Folder, Output

EXAMPLE = "hf-safefilter select scored --by larf_score --drop-fraction 0.02 --output decided"


def select(
    context: typer.Context,
    scored: Folder,
    by: Annotated[str, typer.Option(help="Score column to decide by, or a column of pair shifts.")],
    output: Output,
    drop_fraction: Annotated[float | None, typer.Option(help="Drop this share of the scored rows.")] = None,
    drop_count: Annotated[int | None, typer.Option(help="Drop this many rows.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Drop rows that score this or more.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of labels, for --rule.")] = None,
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
) -> None:
    """Decide which rows to keep; writes kept/ and dropped/ (`save_to_disk` folders) and the decision."""
    from hf_safefilter.columns import PAIR_SHIFT
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.pipeline.decision_rule import decide_threshold
    from hf_safefilter.recipe import SelectionRule
    from hf_safefilter.saved.decision import write_decision
    from hf_safefilter.saved.saved_rows import load_rows_with_steps

    saved = load_rows_with_steps(scored)
    options = {"drop_fraction": drop_fraction, "drop_count": drop_count, "threshold": threshold, "label": label,
               "rule": rule, "max_fpr": max_fpr, "known_good": known_good, "max_loss": max_loss,
               "confidence": confidence, "unsafe": unsafe, "action": action}  # fmt: skip
    on = "pair_shift" if by.endswith(PAIR_SHIFT) else "score"
    selection = SelectionRule.checked(on=on, **{name: value for name, value in options.items() if value is not None})
    masks = selection.action == "mask"
    columns = next((step.mapping for step in saved.steps if masks and hasattr(step, "mapping")), None)
    is_safe = IsSafe(
        by, decide_threshold(saved.rows, by, selection, saved.steps), action=selection.action, columns=columns
    )
    parts = write_decision(output, saved, is_safe)
    facts = {"kept": parts.n_kept, "dropped": parts.n_dropped, "threshold": is_safe.threshold, "rule": is_safe.rule}
    context.obj.report(
        {"output": str(output)} | facts,
        ids=[str(output / "kept")],
        hint=f"hf-safefilter card {output} --license LICENSE --source SOURCE --output out",
    )
