"""One row for a reviewer: its turns with the scores of their spans, its nearest references, and its other scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import SPANS, score_column, span_column, span_scores_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.decide.explanations import compared_at, deciding_scores, explain
from hf_safefilter.errors import SafefilterError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.references import references

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from hf_safefilter.data.messages import Message
    from hf_safefilter.decide.explanations import Explanation, Neighbour
    from hf_safefilter.review.row_columns import RowColumns

_NEAREST = 5


def row_view(rows: RowColumns, place: int, *, text: bool) -> dict[str, Any]:
    """Plain values of a row, for the page; what strangers wrote has gone through `shown`.

    Args:
        rows: All rows.
        place: Index of the row.
        text: Whether to say what the row and its nearest references say.
    """
    row = rows.row(place)
    explanation = _explanation(row, rows)
    spans = _span_scores(row, rows)
    (said,) = as_conversations(row, rows.saved.mapping)
    names = ("",) if said.rejected is None else ("chosen", "rejected")
    sides = [
        {
            "name": name,
            "turns": [_turn(turn, spans.get((name == "rejected", at), []), text) for at, turn in _numbered(side)],
        }
        for name, side in zip(names, said.sides, strict=True)
    ]
    body: dict[str, Any] = {
        "place": place,
        "row_id": rows.ids[place],
        "reason": "" if explanation is None else shown(explanation.reason),
        "method": deciding_scores(Batch(row.with_format("arrow")[:]), rows.column, rows.saved.steps)[0].METHOD,
        "words": "" if explanation is None else explanation.words,
        "sides": sides,
        "scores": [{"name": name} | _standing(values, float(values[place])) for name, values in rows.others.items()],
        "copies": rows.copies(place),
        "groups": {name: _name(group.names, int(group.codes[place])) for name, group in rows.groups.items()},
        "references": {} if explanation is None else _references(explanation, row, rows, text),
    }
    if text and said.tools:
        body["tools"] = shown(said.tools)
    return body


def plain_text(row: Dataset, mapping: dict[str, str] | None) -> list[str]:
    """What each row says, turn by turn, as it may be shown; of a preference pair both sides."""
    return [
        "\n\n".join(f"{turn.role}: {_said(turn)}" for side in said.sides for turn in side)
        for said in as_conversations(row, mapping)
    ]


def _explanation(row: Dataset, rows: RowColumns) -> Explanation | None:
    try:
        return explain(row, rows.column, rows.saved.steps, k=_NEAREST)[0]
    except SafefilterError:  # the references of the score are not on this machine
        return None


def _numbered(side: Sequence[Message]) -> list[tuple[int, Message]]:
    return list(enumerate(side))


def _said(turn: Message) -> str:
    return shown("\n".join(part for part in (turn.content, turn.more) if part))


def _turn(turn: Message, spans: list[dict[str, Any]], text: bool) -> dict[str, Any]:
    said = _said(turn)
    body = {"role": shown(turn.role)[:40], "size": len(said), "trained": turn.trained, "spans": spans}
    return body | ({"text": said} if text else {})


def _span_scores(row: Dataset, rows: RowColumns) -> dict[tuple[bool, int], list[dict[str, Any]]]:
    """Side and turn -> its spans with their scores, the share of rows that score lower, and which of them decides."""
    batch = Batch(row.with_format("arrow")[:])
    spans = batch.spans() if SPANS in batch.names else None
    (step,) = deciding_scores(batch, rows.column, rows.saved.steps)
    of_spans, decides = span_scores_column(step.METHOD), span_column(step.METHOD)
    if spans is None or of_spans not in batch.names:
        return {}
    scores = batch.ragged(of_spans).values
    at = batch.numbers(decides)[0] if decides in batch.names else np.nan
    of_rows = rows.others.get(score_column(step.METHOD), np.empty(0))
    found: dict[tuple[bool, int], list[dict[str, Any]]] = {}
    for number, (span, score) in enumerate(zip(spans.row(0), scores, strict=False)):
        found.setdefault((bool(span["rejected"]), int(span["turn"])), []).append(
            {
                "start": int(span["start"]),
                "stop": int(span["stop"]),
                **_standing(of_rows, float(score)),
                "decides": bool(number == at),
            }
        )
    return found


def _standing(values: np.ndarray, score: float) -> dict[str, Any]:
    """A score, and the share of the scored rows that score lower."""
    if not np.isfinite(score):
        return {"score": None, "above": None}
    finite = values[np.isfinite(values)]
    return {"score": score, "above": float((finite < score).mean()) if len(finite) else None}


def _name(names: Sequence[str], code: int) -> str:
    return names[code] if code < len(names) else ""


def _references(explanation: Explanation, row: Dataset, rows: RowColumns, text: bool) -> dict[str, Any]:
    """The nearest references of each side, with what they say if that is asked for."""
    said: dict[str, Sequence[Any]] = {}
    if text and (explanation.unsafe or explanation.safe):
        (step,) = deciding_scores(Batch(row.with_format("arrow")[:]), rows.column, rows.saved.steps)
        read = compared_at(step)
        said = {} if read is None else {side: references(read[0]).rows(side) for side in ("unsafe", "safe")}
    sides: dict[str, tuple[Neighbour, ...]] = {"unsafe": explanation.unsafe, "safe": explanation.safe}
    return {
        side: [
            {"number": near.number, "cosine": near.cosine}
            | ({"text": _conversation(said[side][near.number - 1])} if side in said else {})
            for near in nearest
        ]
        for side, nearest in sides.items()
    }


def _conversation(reference: Any) -> str:
    return "\n\n".join(f"{turn.role}: {_said(turn)}" for turn in reference.conversation.messages)
