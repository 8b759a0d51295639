"""Dangerous pairs are switched, dangerous answers get weight 0, and dangerous tokens are not learned."""

import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset

from hf_safefilter import EmbedLayers, IsSafe, LarfScore, MaskTokens, ReferenceIndex, purify, split
from hf_safefilter.decide.actions import masked, switched
from hf_safefilter.decide.row_decisions import RowDecisions
from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.recipe import SelectionRule
from hf_safefilter.toy.corpus import mixed_rows

FACTS = {"license": "mit", "source": "these tests"}


@pytest.fixture(scope="module")
def step():
    return EmbedLayers("toy", [4])


@pytest.fixture(scope="module")
def references(step):
    return ReferenceIndex.starter(step)


@pytest.fixture(scope="module")
def sorted_rows():
    """Benign and harmful rows of the toy corpus."""
    rows = mixed_rows(80, 0.3, 1)
    return [row for row in rows if row["label"] == "safe"], [row for row in rows if row["label"] == "unsafe"]


def turns(row, **more):
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"], **more}]


@pytest.fixture(scope="module")
def pairs(sorted_rows):
    """Preference pairs; in every second one the harmful answer is preferred."""
    good, bad = sorted_rows
    rows = []
    for index, (safe, unsafe) in enumerate(zip(good, bad, strict=False)):
        sides = [safe["response"], unsafe["response"]]
        chosen, rejected = sides if index % 2 else sides[::-1]
        rows.append({"prompt": unsafe["prompt"], "chosen": chosen, "rejected": rejected, "score_chosen": 9.0})
        rows[-1] |= {"score_rejected": 1.0, "bad": unsafe["response"]}
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def scored_pairs(pairs, step, references):
    return pairs.map(step, batched=True).map(LarfScore(references, 4, pairs=True), batched=True)


def test_switching_exchanges_both_sides_and_what_belongs_to_them(scored_pairs):
    before = scored_pairs.to_list()
    parts = split(scored_pairs, IsSafe("larf_pair_shift", 0.0, action="switch"))
    assert (len(parts.kept), len(parts.dropped)) == (len(before), 0)
    for old, new in zip(before, parts.kept.to_list(), strict=True):
        sides = ("chosen", "rejected") if old["larf_pair_shift"] < 0 else ("rejected", "chosen")
        assert (new["chosen"], new["rejected"]) == (old[sides[0]], old[sides[1]])
        assert (new["score_chosen"], new["score_rejected"]) == (old[f"score_{sides[0]}"], old[f"score_{sides[1]}"])
        assert {name: old[name] for name in ("prompt", "larf_score", "row_id")} == {
            name: new[name] for name in ("prompt", "larf_score", "row_id")
        }
    preferred = sum(row["chosen"] == row["bad"] for row in parts.kept)
    assert preferred < sum(row["chosen"] == row["bad"] for row in before)


def test_dropping_by_the_shift_drops_the_pairs_that_prefer_harm(scored_pairs):
    parts = split(scored_pairs, IsSafe("larf_pair_shift", 0.0))
    assert all(row["larf_pair_shift"] < 0 for row in parts.kept) and len(parts.dropped)


def test_a_side_that_is_turns_is_switched_whole(sorted_rows):
    good, bad = sorted_rows
    rows = Dataset.from_list([{"chosen": turns(bad[0]), "rejected": turns(good[0])}] * 3)
    table = switched(rows.data.table, np.array([True, False, True]))
    assert table["chosen"].to_pylist() == [turns(good[0]), turns(bad[0]), turns(good[0])]
    assert table["rejected"].to_pylist() == [turns(bad[0]), turns(good[0]), turns(bad[0])]


def test_sides_that_a_person_names_are_switched(pairs, step, references):
    named = {"prompt": "prompt", "chosen": "good", "rejected": "worse"}
    renamed = pairs.rename_columns({"chosen": "good", "rejected": "worse"}).select_columns(["prompt", "good", "worse"])
    embed = EmbedLayers("toy", [4], columns=named)
    scored = renamed.map(embed, batched=True).map(LarfScore(references, 4, pairs=True), batched=True)
    kept = split(scored, IsSafe("larf_pair_shift", 0.0, action="switch", columns=named)).kept
    assert kept["good"] == split_of_known_names(pairs, step, references)
    body = {
        "data": FACTS | {"columns": named},
        "model": "toy",
        "layer": 4,
        "methods": ["larf"],
        "select": {"on": "pair_shift", "action": "switch", "drop_fraction": 0.4},
    }
    assert purify(renamed, body).counts.changed == round(0.4 * len(pairs))


def split_of_known_names(pairs, step, references):
    scored = pairs.map(step, batched=True).map(LarfScore(references, 4, pairs=True), batched=True)
    return split(scored, IsSafe("larf_pair_shift", 0.0, action="switch")).kept["chosen"]


def test_what_cannot_be_switched_is_said():
    with pytest.raises(MissingError, match="chosen and a rejected"):
        switched(Dataset.from_list([{"prompt": "a"}]).data.table, np.array([True]))
    with pytest.raises(DataError, match="different types"):
        switched(Dataset.from_list([{"chosen": "a", "rejected": 1}]).data.table, np.array([True]))
    with pytest.raises(OptionError, match="preference pairs"):
        SelectionRule.checked(action="switch", drop_count=1)
    with pytest.raises(OptionError, match="cannot switch"):
        IsSafe("larf_pair_shift", 0.0, action="switch")({"larf_pair_shift": [1.0]})


@pytest.fixture(scope="module")
def scored_turns(sorted_rows, step, references):
    """A benign turn before a harmful one; the other way round; one harmful answer alone; one with a weight."""
    good, bad = sorted_rows
    rows = [[*turns(good[i]), *turns(bad[i])] for i in range(6)] + [[*turns(bad[i]), *turns(good[i])] for i in range(6)]
    rows += [turns(bad[7]), [*turns(bad[8], weight=0), *turns(good[8])]]
    rows = Dataset.from_list([{"messages": [{"weight": None} | turn for turn in row]} for row in rows])
    return rows.map(step, batched=True).map(LarfScore(references, 4), batched=True)


def flagged_by_hand(row, threshold):
    return {
        span["turn"] for span, score in zip(row["spans"], row["larf_span_scores"], strict=True) if score >= threshold
    }


def test_dangerous_answers_get_weight_zero_and_the_others_none(scored_turns):
    threshold = float(np.median(np.concatenate([row["larf_span_scores"] for row in scored_turns])))
    parts = split(scored_turns, IsSafe("larf_score", threshold, action="mask"))
    kept = {row["row_id"]: row for row in parts.kept}
    seen = 0
    for row in scored_turns.to_list():
        flagged = flagged_by_hand(row, threshold)
        answers = {at for at, turn in enumerate(row["messages"]) if turn["role"] == "assistant" and turn["weight"] != 0}
        assert (row["row_id"] in kept) == bool(answers - flagged)
        if row["row_id"] in kept:
            weights = [turn["weight"] for turn in kept[row["row_id"]]["messages"]]
            expected = [0 if at in flagged else turn["weight"] for at, turn in enumerate(row["messages"])]
            assert weights == expected
            seen += len(flagged)
    assert seen and len(parts.dropped)


def test_a_weight_is_added_where_turns_have_none(sorted_rows, step, references):
    good, bad = sorted_rows
    rows = Dataset.from_list([{"messages": [*turns(bad[i]), *turns(good[i])]} for i in range(4)])
    scored = rows.map(step, batched=True).map(LarfScore(references, 4), batched=True)
    highest = [
        {
            turn: max(s for span, s in zip(row["spans"], row["larf_span_scores"], strict=True) if span["turn"] == turn)
            for turn in (1, 3)
        }
        for row in scored
    ]
    threshold = min(max(both.values()) for both in highest)  # something is masked in every row
    assert any(min(both.values()) < threshold for both in highest)
    kept = split(scored, IsSafe("larf_score", threshold, action="mask")).kept
    assert set(kept.features["messages"].feature) == {"role", "content", "weight"}
    # what was masked is not read again
    again = kept.select_columns(["messages"]).map(step, batched=True).map(LarfScore(references, 4), batched=True)
    assert len(again) and max(again["larf_score"]) < threshold


def test_turns_of_other_columns_shift_the_weights_and_an_answer_there_cannot_be_masked():
    """A system column is the first message; an answer in a history column stands before the turns that have weights."""
    import pyarrow as pa

    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    table = pa.Table.from_pylist([{"system": "Be brief.", "messages": talk, "history": None}])
    changed, left = masked(table.drop_columns("history"), [{2}])
    assert [turn["weight"] for turn in changed["messages"].to_pylist()[0]] == [None, 0, None, None] and left.all()
    changed, left = masked(table.drop_columns("history"), [{2, 4}])
    assert not left.any()
    earlier = pa.Table.from_pylist([{"messages": talk, "history": [["e", "f"]]}])
    changed, left = masked(earlier, [{1}])  # the answer "f"
    assert not left.any() and {turn["weight"] for turn in changed["messages"].to_pylist()[0]} == {None}


def test_a_rejected_answer_does_not_mask_the_chosen_one():
    """Both sides count their turns from 0: the turn of a dangerous rejected answer is not one of the chosen side."""
    pair = {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    spans = [{"turn": 1, "rejected": side, "start": 0, "stop": 1} for side in (False, True)]
    scores = {"x_score": 0.1, "x_span_scores": [0.1, 9.0], "spans": spans}
    rows = Dataset.from_list([pair | scores]).with_format("arrow")[:]
    from hf_safefilter.data.batch import Batch

    assert [list(found) for found in IsSafe("x_score", 0.5, action="mask").dangerous_spans(Batch(rows))] == [[]]


def test_a_weight_that_is_no_number_is_said(step, references, sorted_rows):
    good, _ = sorted_rows
    rows = Dataset.from_list([{"messages": [turn | {"weight": "1"} for turn in turns(row)]} for row in good[:3]])
    scored = rows.map(step, batched=True).map(LarfScore(references, 4), batched=True)
    with pytest.raises(DataError, match="weights of turns are string"):
        split(scored, IsSafe("larf_score", 0.0, action="mask"))


def test_what_was_cut_off_is_not_learned(references):
    """A reader that cuts has not read the rest, so the rest is not among the tokens."""
    cutting = EmbedLayers("toy", [4], too_long="cut", max_length=40)
    rows = Dataset.from_list([{"prompt": "Tell me.", "response": "again " * 200}])
    scored = rows.map(cutting, batched=True).map(LarfScore(references, 4), batched=True)
    masked = scored.map(MaskTokens(cutting, IsSafe("larf_score", 9.0)), batched=True)
    last = max(span["stop"] for span in masked["spans"][0])
    assert len(masked["input_ids"][0]) == 40 == last


def test_masked_tokens_are_those_of_the_flagged_spans(scored_turns, step):
    threshold = float(np.median(np.concatenate([row["larf_span_scores"] for row in scored_turns])))
    mask = MaskTokens(step, IsSafe("larf_score", threshold))
    rows = scored_turns.map(mask, batched=True)
    plain = scored_turns.map(MaskTokens(step, IsSafe("larf_score", 9.0)), batched=True)
    assert rows["input_ids"] == plain["input_ids"]
    hidden = 0
    for row, whole in zip(rows.to_list(), plain.to_list(), strict=True):
        expected = list(whole["labels"])
        for span, score in zip(row["spans"], row["larf_span_scores"], strict=True):
            if score >= threshold:
                expected[span["start"] : span["stop"]] = [-100] * (span["stop"] - span["start"])
        assert row["labels"] == expected
        hidden += row["labels"] != whole["labels"]
    assert hidden
    assert "decision" in mask.record()


def test_what_people_decided_goes_before_the_scores_of_spans(scored_turns, step):
    """Nothing of a kept row is hidden, all of a dropped one, and of a masked one the turns that are named."""
    turns = [sorted({span["turn"] for span in row}) for row in scored_turns["spans"]]
    several = next(at for at, own in enumerate(turns) if len(own) > 1)
    keep, drop = (at for at in range(3) if at != several)
    ids = scored_turns["row_id"]
    rulings = [(ids[keep], "keep", ()), (ids[drop], "drop", ()), (ids[several], "mask", (turns[several][0],))]
    everything = IsSafe("larf_score", -9.0, decisions=RowDecisions(tuple(rulings)))
    scores = np.array(scored_turns["larf_score"], np.float32)
    scores[keep] = np.nan  # a person may keep what could not be scored
    judged = scored_turns.remove_columns("larf_score").add_column("larf_score", scores)
    rows = judged.map(MaskTokens(step, everything), batched=True).to_list()
    plain = scored_turns.map(MaskTokens(step, IsSafe("larf_score", 9.0)), batched=True).to_list()
    assert rows[keep]["labels"] == plain[keep]["labels"]
    assert set(rows[drop]["labels"]) == {-100}
    expected = list(plain[several]["labels"])
    for span in rows[several]["spans"]:
        if span["turn"] == turns[several][0]:
            expected[span["start"] : span["stop"]] = [-100] * (span["stop"] - span["start"])
    assert rows[several]["labels"] == expected != plain[several]["labels"]
    others = [row for at, row in enumerate(rows) if at not in (keep, drop, several)]
    assert all(set(row["labels"]) <= {-100} for row in others)


def test_trl_takes_the_tokens_as_they_are(scored_turns, step):
    collators = pytest.importorskip("trl.trainer.sft_trainer")
    rows = scored_turns.map(MaskTokens(step, IsSafe("larf_score", 0.0)), batched=True)
    rows = rows.select_columns(["input_ids", "labels"])
    batch = collators.DataCollatorForLanguageModeling(pad_token_id=0)(rows.to_list())
    for row, labels in zip(rows.to_list(), batch["labels"].tolist(), strict=True):
        assert labels[: len(row["labels"])] == row["labels"] and set(labels[len(row["labels"]) :]) <= {-100}


def test_a_row_without_a_score_has_no_labels(step, references):
    rows = Dataset.from_list([{"prompt": "Hi", "response": "Hello."}, {"prompt": "Hi", "response": ""}])
    scored = rows.map(step, batched=True).map(LarfScore(references, 4), batched=True)
    labels = scored.map(MaskTokens(step, IsSafe("larf_score", 9.0)), batched=True)["labels"]
    assert set(labels[1]) <= {-100} and set(labels[0]) > {-100}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_recipe_switches_and_its_card_says_so(pairs, streaming, tmp_path):
    from hf_safefilter.publish.folder import write_folder

    recipe = {
        "data": FACTS,
        "model": "toy",
        "layer": 4,
        "methods": ["larf"],
        "select": {"on": "pair_shift", "action": "switch", "drop_fraction": 0.4},
    }
    rows = IterableDataset.from_generator(pairs.to_list().__iter__) if streaming else pairs
    done = purify(rows, recipe)
    assert (done.counts.kept, done.counts.dropped) == (len(pairs), 0)
    assert done.counts.changed == round(0.4 * len(pairs))
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance, kept=done.kept)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"in {done.counts.changed} kept preference pairs" in card and "action: switch" in card
    written = Dataset.from_parquet([str(path) for path in (tmp_path / "out" / "data").glob("*.parquet")])
    changed = sum(a["chosen"] != b["chosen"] for a, b in zip(pairs, written, strict=True))
    assert changed == done.counts.changed


def test_a_recipe_masks_and_its_card_says_so(scored_turns, tmp_path):
    from hf_safefilter.publish.folder import write_folder

    recipe = {
        "data": FACTS,
        "model": "toy",
        "layer": 4,
        "methods": ["larf"],
        "select": {"action": "mask", "drop_fraction": 0.5},
    }
    done = purify(scored_turns.select_columns(["messages"]), recipe)
    assert done.counts.changed and done.counts.kept + done.counts.dropped == len(scored_turns)
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance, kept=done.kept)
    assert f"in {done.counts.changed} kept rows the answers" in (tmp_path / "out" / "README.md").read_text()
    written = Dataset.from_parquet([str(path) for path in (tmp_path / "out" / "data").glob("*.parquet")])
    assert len(written) == done.counts.kept
    with pytest.raises(OptionError, match="streaming"):
        purify(None, recipe | {"data": FACTS | {"path": "rows.jsonl", "streaming": True}})


@pytest.mark.parametrize("action", ["drop", "mask"])
def test_turns_of_unlike_keys_which_are_held_as_json_are_decided_too(sorted_rows, tmp_path, action):
    """As `datasets` loads conversations with tool calls: each turn is a text of JSON, and Arrow has no empty one."""
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.publish.folder import write_folder

    good, bad = sorted_rows
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {}}}], "weight": 0}
    said = [
        turns(one) + [{"role": "user", "content": "And?"}, call, *turns(two)]
        for one, two in zip(good, bad, strict=False)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in said))
    rows = load_rows(tmp_path / "rows.jsonl").rows
    assert isinstance(rows.data.schema.field("messages").type.value_type, pa.JsonType)
    recipe = {"data": FACTS | {"path": str(tmp_path / "rows.jsonl")}, "model": "toy", "layer": 4, "methods": "larf",
              "select": {"action": action, "drop_fraction": 0.3}}  # fmt: skip
    done = purify(None, recipe, anyway=True)
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance)
    assert done.counts.rows == len(said) and bool(done.counts.changed) == (action == "mask")
    flagged = {row for row, score in enumerate(done.scored["larf_score"]) if score >= done.is_safe.threshold}
    kept = [[json.loads(turn) for turn in row] for row in done.kept.data.table["messages"].to_pylist()]
    assert len(kept) == done.counts.kept
    changed = 0
    for row in kept:
        at = next(place for place, other in enumerate(said) if other[0] == row[0])
        plain = [{name: value for name, value in turn.items() if name != "weight"} for turn in row]
        assert plain == [{name: value for name, value in turn.items() if name != "weight"} for turn in said[at]]
        masked_turns = [place for place, turn in enumerate(row) if turn.get("weight") == 0]
        assert 3 in masked_turns and (len(masked_turns) > 1) == (at in flagged)
        changed += len(masked_turns) > 1
    assert changed == done.counts.changed
