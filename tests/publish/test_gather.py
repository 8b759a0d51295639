import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.errors import IntegrityError, PublishError
from hf_safefilter.publish.drop_reasons import NO_NUMBER, REACHED, reasons_of
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.gather import gather, ids_digest
from hf_safefilter.publish.provenance import Provenance, portable
from hf_safefilter.scores.controls import RandomScore

FACTS = {"license": "mit", "source": "a barn"}


def test_counts_add_up_and_agree_with_a_plain_loop(scored, is_safe, steps):
    record = gather(scored, is_safe, steps=steps, **FACTS)
    dropped = [len(row["response"]) >= 200 for row in scored]
    assert (record.counts.rows, record.counts.dropped) == (60, sum(dropped))
    assert record.counts.by_reason == {REACHED: sum(dropped)}
    easy = [gone for row, gone in zip(scored, dropped, strict=True) if row["category"] == "easy"]
    assert (record.counts.by_category["easy"].rows, record.counts.by_category["easy"].dropped) == (len(easy), sum(easy))
    ids = [row_id(one) for one in as_conversations(scored.select_columns(["prompt", "response"]))]
    assert record.source.splits["train"].row_ids == ids_digest(ids)
    assert record.quantiles["0.5"] == np.median([len(row["response"]) for row in scored])
    assert record.controls["length_score"] == pytest.approx(1.0)
    assert record.check.largest_difference == 0
    assert record.columns_added == ["random_score", "length_score"]


def test_the_record_survives_json_and_nothing_else_is_one(scored, is_safe, steps):
    record = gather(scored, is_safe, steps=steps, **FACTS)
    assert Provenance.from_json(record.to_json()) == record
    for broken in ("{}", "no json", json.dumps(record.to_dict() | {"surprise": 1})):
        with pytest.raises(IntegrityError):
            Provenance.from_json(broken)


def test_scores_that_the_steps_do_not_give_are_refused(scored, is_safe, steps):
    changed = scored.map(lambda row: {"length_score": row["length_score"] + 50.0}, features=scored.features)
    with pytest.raises(PublishError, match="do not give the scores"):
        gather(changed, is_safe, steps=steps, **FACTS)


def test_a_score_that_became_nan_is_refused(scored, is_safe, steps):
    changed = scored.map(lambda row: {"length_score": float("nan")}, features=scored.features)
    with pytest.raises(PublishError):
        gather(changed, is_safe, steps=steps, **FACTS)


@pytest.mark.parametrize("missing", [{"license": " "}, {"source": ""}])
def test_a_missing_licence_or_source_is_an_error(scored, is_safe, steps, missing):
    with pytest.raises(PublishError, match="missing"):
        gather(scored, is_safe, steps=steps, **FACTS | missing)


SECRETS = ("hunter2", "hf_" + "a" * 34, "s3cr3t", "\x1b", "\u202e", "pwned")
HOSTILE = {
    "license": "mit \x1b]0;pwned\x07\x1b[31mred",
    "source": f"https://me:hunter2@example.org/x?token=s3cr3t&a=1 and {SECRETS[1]}\u202e",
}


def test_no_password_token_or_control_character_is_in_a_record(scored, is_safe, steps):
    recipe = {"data": HOSTILE | {HOSTILE["source"]: [HOSTILE["source"]]}}
    record = gather(scored, is_safe, steps=steps, recipe=recipe, source_revision=HOSTILE["source"], **HOSTILE)
    assert not [secret for secret in SECRETS if json.dumps(secret)[1:-1] in record.to_json()]
    assert record.source.name == "https://***@example.org/x?token=***&a=1 and hf_***"
    assert record.source.license == "mit red"
    forged = record.to_json().replace("mit red", f"mit {SECRETS[1]}")
    assert Provenance.from_json(forged).source.license == "mit hf_***"


# Sources and categories


def shares_of(rows, is_safe, steps, column="category"):
    ds = Dataset.from_list([{"prompt": "How?", "response": f"So {n}.", column: cell} for n, cell in enumerate(rows)])
    for step in steps:
        ds = ds.map(step, batched=True)
    return getattr(gather(ds, is_safe, steps=steps, **FACTS).counts, f"by_{column}")


@pytest.mark.parametrize("column", ["source", "category"])
def test_values_that_may_be_text_of_a_row_are_not_listed(is_safe, steps, column):
    long = "the text of a row that nobody wants to see in a card"
    cells = ["easy"] * 3 + ["hard"] * 2 + ["seen once", "seen once as well"] + [long] * 4 + ["two\nlines"] * 2
    shares = shares_of(cells, is_safe, steps, column)
    assert {name: share.rows for name, share in shares.items()} == {"easy": 3, "hard": 2, "4 others": 8}


def test_no_more_values_are_listed_than_fit(is_safe, steps):
    shares = shares_of([f"kind {n}" for n in range(100)] * 2, is_safe, steps)
    assert len(shares) == 41 and shares["60 others"].rows == 120
    assert sum(share.rows for share in shares.values()) == 200


@pytest.mark.parametrize(
    "cells",
    [
        ["hf_" + "a" * 34] * 3, ["$\\frac{$"] * 3, ["{{ 7 * 7 }}"] * 3, ["---\nlicense: x\n---"] * 3,
        ["\x00\x1b[2J"] * 3,
        ["2 others"] * 3, [None, None, "x"], [["a", "b"]] * 3, [{"a": {"b": 1}}] * 3, [b"\xff"] * 3, ["\u202e<b>"] * 3,
        [float("nan")] * 3, [1, 2, 2], [""] * 3, ["a" * 100_000] * 3, ["|" * 40] * 3,
    ],
    ids=lambda cells: repr(cells[0])[:20],
)  # fmt: skip
def test_a_strange_category_does_not_end_a_run(tmp_path, is_safe, steps, cells):
    ds = Dataset.from_list([{"prompt": "How?", "response": f"So {n}.", "category": c} for n, c in enumerate(cells)])
    for step in steps:
        ds = ds.map(step, batched=True)
    record = gather(ds, is_safe, steps=steps, **FACTS)
    assert sum(share.rows for share in record.counts.by_category.values()) == 3
    write_folder(tmp_path / "out", ds, is_safe, record)
    card = (tmp_path / "out" / "README.md").read_text()
    assert not set(card) & {"\x1b", "\x00", "\u202e"} and "hf_aaa" not in card and len(card) < 20_000


def test_of_the_steps_of_this_process_the_one_that_ran_is_found(scored, is_safe):
    """Many were made; the one that gives the scores that are there is named, and none is guessed."""
    ran = RandomScore(seed=5)
    ds = scored.remove_columns("random_score").map(ran, batched=True)
    for seed in (6, 7):
        RandomScore(seed=seed)
    record = gather(ds, IsSafe("random_score", 0.5), **FACTS)
    assert record.steps == [ran.record()]
    changed = ds.map(lambda row: {"random_score": row["random_score"] / 2}, features=ds.features)
    with pytest.raises(PublishError, match="no step constructed in this process"):
        gather(changed, IsSafe("random_score", 0.5), **FACTS)
    with pytest.raises(PublishError, match="no step in this process"):
        gather(ds.rename_column("random_score", "cheese_score"), IsSafe("cheese_score", 0.5), **FACTS)


def test_unread_rows_are_counted_under_their_own_reason(scored, steps):
    reasons = ["too_long" if number == 3 else "" for number in range(60)]
    values = [np.nan if number in (3, 4) else value for number, value in enumerate(scored["length_score"])]
    ds = scored.remove_columns("length_score").add_column("length_score", np.array(values, np.float32))
    ds = ds.add_column("unscorable", reasons)
    reasons = reasons_of(ds, IsSafe("length_score", 1e6))
    assert (reasons[3], reasons[4], reasons[5]) == ("unscorable: too_long", NO_NUMBER, "")


def test_splits_are_counted_apart(scored, is_safe, steps):
    record = gather(
        DatasetDict(a=scored.select(range(50)), b=scored.select(range(50, 60))), is_safe, steps=steps, **FACTS
    )
    assert {name: share.dropped for name, share in record.counts.by_split.items()} == {"a": 0, "b": 10}


def test_local_paths_are_cut_to_their_last_part(tmp_path):
    assert portable({"a": [str(tmp_path / "model")], "b": "org/model", "c": 3}) == {
        "a": ["model"],
        "b": "org/model",
        "c": 3,
    }
