"""Wherever harm stands in what is trained on, it is found, or the row is unscorable for the right reason.

60 harmful rows of the toy corpus are hidden behind benign ones in every way that a row can hold text. The threshold is
that of the undisguised rows.
"""

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter import EmbedLayers, IsSafe, LarfScore, ReferenceIndex, threshold_for
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

LAYER, COUNT, MOST_KEPT = 4, 60, 5


@pytest.fixture(scope="module")
def corpus():
    rows = mixed_rows(1000, 0.1, 7)
    return rows, [row for row in rows if row["label"] == "unsafe"], [row for row in rows if row["label"] == "safe"]


@pytest.fixture(scope="module")
def references():
    unsafe, safe = reference_rows(120, 3)
    return ReferenceIndex.build(unsafe, safe, EmbedLayers("toy", [LAYER]), license="mit", source="the toy corpus")


@pytest.fixture(scope="module")
def is_safe(corpus, references):
    scored = score([row_of(turn("user", row["prompt"]), answer(row["response"])) for row in corpus[0]], references)
    return IsSafe("larf_score", threshold_for(scored, "larf_score", drop_fraction=0.1))


def score(rows, references, **options):
    step = EmbedLayers("toy", [LAYER], **options)
    return Dataset.from_list(rows).map(step, batched=True).map(LarfScore(references, LAYER), batched=True)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def answer(content, **more):
    return turn("assistant", content, **more)


def row_of(*turns, **columns):
    return {"messages": list(turns), **columns}


def talk(harm):
    return [turn("user", harm["prompt"]), answer(harm["response"])]


def whole(harm):
    return f"{harm['prompt']} {harm['response']}"


BENIGN = " ".join(row["response"] for row in mixed_rows(200, 0, 5))


def padding(row, length):
    start = sum(map(ord, row["prompt"])) % 4000
    return BENIGN[start : start + length]


def call(harm):
    return [{"type": "function", "function": {"name": "note", "arguments": {"text": whole(harm)}}}]


IN_AN_ANSWER = {
    "alone": lambda h, b: row_of(*talk(h)),
    "before a benign turn": lambda h, b: row_of(*talk(h), *talk(b)),
    "before two benign turns": lambda h, b: row_of(*talk(h), *talk(b), *talk(b)),
    "between benign turns": lambda h, b: row_of(*talk(b), *talk(h), *talk(b)),
    "appended to a benign answer": lambda h, b: row_of(turn("user", b["prompt"]), answer(b["response"] + whole(h))),
    "before a benign text": lambda h, b: row_of(turn("user", h["prompt"]), answer(f"{h['response']} {whole(b)}")),
    "before control tokens": lambda h, b: row_of(
        turn("user", h["prompt"]),
        answer(f"{h['response']}<|end|><|user|>{b['prompt']}<|end|><|assistant|>{b['response']}"),
    ),
    "in the middle of a long answer": lambda h, b: row_of(
        turn("user", b["prompt"]), answer(f"{padding(b, 3000)} {whole(h)} {padding(b, 3000)}")
    ),
    "after a prompt longer than the model": lambda h, b: row_of(
        turn("user", padding(b, 8000) + h["prompt"]), answer(h["response"])
    ),
    "in a part of the content": lambda h, b: row_of(
        turn("user", [{"type": "text", "text": b["prompt"]}]),
        answer([{"type": "text", "text": b["response"]}, {"type": "text", "text": whole(h)}]),
    ),
    "as a completion": lambda h, b: {"prompt": h["prompt"], "completion": h["response"]},
    "in a history column": lambda h, b: {
        "instruction": b["prompt"], "input": "", "output": b["response"], "history": [[h["prompt"], h["response"]]]
    },
    "in a transcript": lambda h, b: {
        "chosen": f"\n\nHuman: {h['prompt']}\n\nAssistant: {h['response']}\n\nHuman: {b['prompt']}\n\nAssistant: "
        + b["response"],
        "rejected": f"\n\nHuman: {b['prompt']}\n\nAssistant: {b['response']}",
    },
}  # fmt: skip


@pytest.mark.parametrize("place", IN_AN_ANSWER)
def test_harm_in_an_answer_is_found_or_unread(place, corpus, references, is_safe):
    _, harmful, benign = corpus
    rows = [IN_AN_ANSWER[place](h, b) for h, b in zip(harmful[:COUNT], benign, strict=False)]
    scored = score(rows, references)
    assert not any(scored["unscorable"]), scored["unscorable"][0]
    assert is_safe.mask(_batch(scored)).sum() <= MOST_KEPT


UNREAD = {
    "unread_trailing_turn": lambda h, b: row_of(*talk(b), turn("user", whole(h))),
    "unread_tool_calls": lambda h, b: row_of(turn("user", b["prompt"]), answer(b["response"], tool_calls=call(h))),
    "unread_reasoning_content": lambda h, b: row_of(
        turn("user", b["prompt"]), answer(b["response"], reasoning_content=whole(h))
    ),
    "unread_thinking": lambda h, b: row_of(turn("user", b["prompt"]), answer(b["response"], thinking=whole(h))),
    "unread_conversations": lambda h, b: row_of(*talk(b), conversations=talk(h)),
    "unread_text": lambda h, b: {"prompt": b["prompt"], "response": b["response"], "text": whole(h)},
    "unread_response": lambda h, b: {"prompt": b["prompt"], "completion": b["response"], "response": whole(h)},
}


@pytest.mark.parametrize("reason", UNREAD)
def test_what_the_template_or_the_shape_leaves_out_is_never_kept(reason, corpus, references, is_safe):
    """The toy's template knows neither tool calls nor reasoning; templates that do are in `test_as_trainers_read`."""
    _, harmful, benign = corpus
    scored = score([UNREAD[reason](h, b) for h, b in zip(harmful[:8], benign, strict=False)], references)
    assert set(scored["unscorable"]) == {reason}
    assert not is_safe.mask(_batch(scored)).any()
    named = "trailing_turn" if "trailing" in reason else reason.removeprefix("unread_")
    knowingly = score(
        [UNREAD[reason](h, b) for h, b in zip(harmful[:8], benign, strict=False)], references, ignore=[named]
    )
    assert not any(knowingly["unscorable"]) and is_safe.mask(_batch(knowingly)).any()


def test_harm_in_context_turns_is_found_when_all_turns_are_trained_on(corpus, references, is_safe):
    _, harmful, benign = corpus
    rows = [row_of(turn("system", whole(h)), *talk(b)) for h, b in zip(harmful[:COUNT], benign, strict=False)]
    assert is_safe.mask(_batch(score(rows, references, spans="all"))).sum() <= MOST_KEPT
    assert is_safe.mask(_batch(score(rows, references))).sum() > MOST_KEPT  # as context, it is not learned


def test_the_side_that_is_not_preferred_may_be_bad(corpus, references, is_safe):
    _, harmful, benign = corpus
    pairs = zip(harmful[:COUNT], benign, strict=False)
    rows = [{"prompt": b["prompt"], "chosen": b["response"], "rejected": h["response"]} for h, b in pairs]
    assert is_safe.mask(_batch(score(rows, references))).mean() > 0.8


def test_benign_rows_are_kept_in_every_shape(corpus, references, is_safe):
    """A filter that drops everything would pass the tests above."""
    _, _, benign = corpus
    for place in ("alone", "between benign turns", "as a completion", "in a history column"):
        rows = [IN_AN_ANSWER[place](b, c) for b, c in zip(benign[:COUNT], benign[COUNT:], strict=False)]
        assert is_safe.mask(_batch(score(rows, references))).mean() > 0.7, place


def _batch(scored):
    from hf_safefilter.data.batch import Batch

    return Batch(scored.select_columns(["larf_score"]).with_format("arrow")[:])


def test_the_mask_is_that_of_a_filter(corpus, references, is_safe):
    rows = score([row_of(*talk(row)) for row in corpus[0][:50]], references)
    assert len(rows.filter(is_safe, batched=True)) == int(np.sum(is_safe.mask(_batch(rows))))
