import json

import numpy as np
import pytest
from datasets import DatasetDict

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.errors import IntegrityError, PublishError
from hf_safefilter.publish.drop_reasons import NO_NUMBER, REACHED, reasons_of
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


def test_a_token_in_the_record_is_refused(scored, is_safe, steps):
    with pytest.raises(PublishError, match="token") as error:
        gather(scored, is_safe, steps=steps, license="mit", source="me hf_" + "a" * 34)
    assert "hf_a" not in str(error.value)


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
