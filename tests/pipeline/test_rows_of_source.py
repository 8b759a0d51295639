"""Rows that were switched or masked are held to their source too: their words, and what people have decided of them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from altered_folders import described
from datasets import Dataset

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.decide.decision_log import DecisionLog, RowDecision
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish.drop_reasons import row_ids
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.scores import make_score
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

FACTS = {"license": "cc0-1.0", "source": "a test"}
SHARD = "data/train-00000-of-00001.parquet"


def chats(count):
    """Rows of two exchanges, and one that cannot be read."""
    rows = mixed_rows(2 * count, 0.4, 5)
    turns = [[("user", row["prompt"]), ("assistant", row["response"])] for row in rows]
    said = [*(one + two for one, two in zip(turns[::2], turns[1::2], strict=True)), [("user", "Hi"), ("assistant", "")]]
    return [{"messages": [{"role": role, "content": text} for role, text in row]} for row in said]


def pairs(count):
    """Preference pairs, and one that cannot be read."""
    rows = mixed_rows(2 * count, 0.4, 5)
    return [
        *(
            {"prompt": one["prompt"], "chosen": one["response"], "rejected": two["response"] + "."}
            for one, two in zip(rows[::2], rows[1::2], strict=True)
        ),
        {"prompt": "Hi", "chosen": "", "rejected": "Hello."},
    ]


def published(folder, rows, action, decisions=None):
    """Rows scored by a probe, decided at a threshold that a third of them reach, in a folder."""
    embed = EmbedLayers("toy", [5])
    index = ReferenceIndex.build(*reference_rows(12, 3), embed, license="mit", source="a test")
    steps = [embed, make_score("probe", {}, references=index, layers=(5,)), LengthScore()]
    source = Dataset.from_list(rows)
    ds = embed_rows(source, embed)
    for step in steps[1:]:
        ds = score_rows(ds, step)
    threshold = sorted(score for score in ds["probe_score"] if score == score)[2 * len(ds) // 3]
    decision = IsSafe("probe_score", threshold, action=action, decisions=decisions)
    write_folder(folder, ds, decision, gather(ds, decision, steps=steps, anyway=True, **FACTS))
    return source


def line(folder, source):
    return next(line for line in Verification(folder, source, sample=None).lines() if line.check == "rows")


def altered(folder, change):
    rows = pq.read_table(folder / SHARD).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(folder / SHARD)), folder / SHARD)
    described(folder)


@pytest.fixture(params=["mask", "switch"])
def made(request, tmp_path):
    action = request.param
    rows = chats(12) if action == "mask" else pairs(12)
    return action, tmp_path / "out", published(tmp_path / "out", rows, action)


def key(action):
    return "messages" if action == "mask" else "chosen"


def test_changed_rows_pass_and_are_counted(made):
    action, folder, source = made
    found = line(folder, source)
    before = {json.dumps(row[key(action)]) for row in source}
    kept = pq.read_table(folder / SHARD).to_pylist()

    def plain(cell):
        return json.dumps(
            [{k: v for k, v in turn.items() if v is not None} for turn in cell] if action == "mask" else cell
        )

    changed = sum(plain(row[key(action)]) not in before for row in kept)
    assert found.result == "pass" and changed > 1
    word = "turns that are not trained on" if action == "mask" else "sides switched"
    assert f"{changed} of those kept" in found.why and word in found.why


def test_other_words_a_row_too_many_and_one_too_few_fail(made):
    action, folder, source = made
    original = (folder / SHARD).read_bytes()

    def reworded(rows):
        if action == "mask":
            rows[0]["messages"][1]["content"] += " and more"
        else:
            rows[0]["chosen"] += " and more"

    for change in (reworded, lambda rows: rows.append(rows[0]), lambda rows: rows.pop()):
        altered(folder, change)
        assert line(folder, source).result == "fail"
        (folder / SHARD).write_bytes(original)


def test_a_dropped_row_of_nowhere_is_invented(made):
    _, folder, source = made
    dropped = pq.read_table(folder / "dropped.parquet")
    ids = ["f" * 32, *dropped["row_id"].to_pylist()[1:]]
    pq.write_table(
        dropped.set_column(dropped.column_names.index("row_id"), "row_id", pa.array(ids)), folder / "dropped.parquet"
    )
    described(folder)
    found = line(folder, source)
    assert found.result == "fail" and "invented" in found.why


def test_turns_that_people_have_masked_are_masked_and_no_others(tmp_path):
    rows = chats(12)
    ids = row_ids(Dataset.from_list(rows))
    log = DecisionLog(tmp_path / "decisions.jsonl")
    log.append(RowDecision(ids[0], "mask", "ada", "2026-01-01T00:00:00Z", turns=(3,)))
    log.append(RowDecision(ids[1], "mask", "ada", "2026-01-01T00:00:00Z", turns=(1, 3)))  # nothing is left: it goes
    source = published(tmp_path / "out", rows, "drop", log.path)
    found = line(tmp_path / "out", source)
    assert found.result == "pass" and "1 of those kept have turns that are not trained on" in found.why

    def other_turn(kept):
        for row in kept:
            weights = [turn.get("weight") for turn in row["messages"]]
            if weights == [None, None, None, 0]:
                row["messages"][1]["weight"], row["messages"][3]["weight"] = 0, None

    def unmasked(kept):
        for row in kept:
            for turn in row["messages"]:
                turn["weight"] = None

    original = (tmp_path / "out" / SHARD).read_bytes()
    for change in (other_turn, unmasked):
        altered(tmp_path / "out", change)
        assert line(tmp_path / "out", source).result == "fail"
        (tmp_path / "out" / SHARD).write_bytes(original)


@pytest.mark.parametrize("weight", [0, None])
def test_a_row_of_which_people_masked_every_answer_may_not_be_kept(tmp_path, weight):
    rows = chats(12)
    ids = row_ids(Dataset.from_list(rows))
    log = DecisionLog(tmp_path / "decisions.jsonl")
    for row, turns in ((0, (3,)), (1, (1, 3))):
        log.append(RowDecision(ids[row], "mask", "ada", "2026-01-01T00:00:00Z", turns=turns))
    source = published(tmp_path / "out", rows, "drop", log.path)
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet")
    places = [place for place, name in enumerate(dropped["row_id"].to_pylist()) if name != ids[1]]
    assert len(places) == dropped.num_rows - 1
    pq.write_table(dropped.take(places), tmp_path / "out" / "dropped.parquet")
    whole = [turn | {"weight": weight if turn["role"] == "assistant" else None} for turn in rows[1]["messages"]]
    altered(tmp_path / "out", lambda kept: kept.append(kept[0] | {"messages": whole}))
    found = line(tmp_path / "out", source)
    assert found.result == "fail" and "was not dropped" in found.why


def failing(folder, source, **counts):
    """The checks that fail when the record states other counts, as whoever altered the rows would have it."""
    record = json.loads((folder / "provenance.json").read_text())
    record["counts"] |= counts
    (folder / "provenance.json").write_text(json.dumps(record))
    described(folder)
    return {line.check for line in Verification(folder, source, sample=None).lines() if line.result == "fail"}


def test_a_change_that_is_undone_is_found_whatever_is_stated(made):
    action, folder, source = made
    shown = json.loads((folder / "provenance.json").read_text())["counts"]["changed"]

    def undo(rows):
        for row, before in zip(rows, source.to_list(), strict=False):
            if action == "mask":
                for turn in row["messages"]:
                    turn["weight"] = None
            elif row["chosen"] != before["chosen"]:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]

    altered(folder, undo)
    assert "rows" in failing(folder, source, changed=shown)
    assert "scores" in failing(folder, source, changed=0)


def test_a_turn_that_the_source_does_not_train_on_may_not_be_trained_on(tmp_path):
    rows = chats(8)
    for row in rows[:4]:
        row["messages"][1]["weight"] = 0
    source = published(tmp_path / "out", rows, "mask")
    assert line(tmp_path / "out", source).result == "pass"

    def trained(kept):
        for row in kept[:4]:
            row["messages"][1]["weight"] = 1

    altered(tmp_path / "out", trained)
    found = line(tmp_path / "out", source)
    assert found.result == "fail" and "changed otherwise than stated" in found.why


def test_masks_of_people_are_held_where_the_score_masks_too(tmp_path):
    rows = chats(8)
    ids = row_ids(Dataset.from_list(rows))
    log = DecisionLog(tmp_path / "decisions.jsonl")
    log.append(RowDecision(ids[0], "mask", "ada", "2026-01-01T00:00:00Z", turns=(3,)))
    source = published(tmp_path / "out", rows, "mask", log.path)
    assert line(tmp_path / "out", source).result == "pass"
    altered(tmp_path / "out", lambda kept: [turn.update(weight=None) for turn in kept[0]["messages"]])
    found = line(tmp_path / "out", source)
    assert found.result == "fail" and "as people decided" in found.why


def test_a_split_of_nowhere_is_found(made):
    _, folder, source = made
    (folder / "data" / "extra-00000-of-00001.parquet").write_bytes((folder / SHARD).read_bytes())
    described(folder)
    found = line(folder, source)
    assert found.result == "fail" and "splits" in found.why


def test_a_row_that_is_dropped_once_and_kept_once_is_found(tmp_path):
    rows = [*chats(6), {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]}]
    source = published(tmp_path / "out", rows, "mask")
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet")
    assert dropped.num_rows == 2 and len(set(dropped["row_id"].to_pylist())) == 1
    pq.write_table(dropped.slice(0, 1), tmp_path / "out" / "dropped.parquet")
    altered(tmp_path / "out", lambda kept: kept.append(kept[0] | {"messages": rows[-1]["messages"]}))
    found = line(tmp_path / "out", source)
    assert found.result == "fail" and "kept and dropped" in found.why


def test_a_twin_that_people_dropped_is_no_fault(tmp_path):
    """A row masked by people says what its twin says, which has that weight from the start and was dropped."""
    rows = chats(6)
    twin = {"messages": [dict(turn) for turn in rows[0]["messages"]]}
    twin["messages"][3]["weight"] = 0
    ids = row_ids(Dataset.from_list([*rows, twin]))
    log = DecisionLog(tmp_path / "decisions.jsonl")
    log.append(RowDecision(ids[0], "mask", "ada", "2026-01-01T00:00:00Z", turns=(3,)))
    log.append(RowDecision(ids[-1], "drop", "ada", "2026-01-01T00:00:00Z"))
    source = published(tmp_path / "out", [*rows, twin], "drop", log.path)
    assert line(tmp_path / "out", source).result == "pass"


def test_what_was_made_passes_every_check(made):
    _, folder, source = made
    assert not failing(folder, source)


def test_a_row_of_which_the_score_masked_every_answer_may_not_be_kept(tmp_path):
    rows = chats(8)
    source = published(tmp_path / "out", rows, "mask")
    kept = pq.read_table(tmp_path / "out" / SHARD).to_pylist()
    changed = [place for place, row in enumerate(kept) if any(turn["weight"] == 0 for turn in row["messages"])]

    def masked_whole(rows):
        for turn in rows[changed[0]]["messages"]:
            turn["weight"] = 0 if turn["role"] == "assistant" else None

    assert changed
    altered(tmp_path / "out", masked_whole)
    found = line(tmp_path / "out", source)
    assert found.result == "fail" and "changed otherwise than stated" in found.why
