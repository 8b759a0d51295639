"""What the page is told, and what it writes: numbers of all rows, texts only when asked for, decisions that stay."""

import base64
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from hf_safefilter.decide.decision_log import DecisionLog
from hf_safefilter.errors import IntegrityError, OptionError, SafefilterError
from hf_safefilter.review.review import Review
from hf_safefilter.review.row_columns import Groups
from review.scored_folder import COPY, HOSTILE, MARKUP, ORIGINAL, PLAIN, UNREAD


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def column_of(ds, name):
    return [cell for part in ds.values() for cell in part[name][:]]


def test_the_page_gets_the_numbers_of_all_splits_in_order(review, scored):
    _, ds, _ = scored
    body = review.overview()
    scores = np.array(column_of(ds, "largest_rank_score"), float)
    np.testing.assert_array_equal(unpacked(body["scores"], "<f8"), scores)
    assert (
        np.isnan(scores[UNREAD]) and body["rows"] == 60 and (scores >= body["threshold"]).sum() == 11
    )  # of two alike none is kept
    assert unpacked(body["first"], "<i4")[[ORIGINAL, COPY, 11]].tolist() == [COPY, COPY, 11]
    kinds = {name: np.array([*group["names"], None])[unpacked(group["codes"], "<u2")].tolist()
             for name, group in body["groups"].items()}  # fmt: skip
    assert kinds["split"] == ["train"] * 30 + ["test"] * 30
    assert kinds["category"] == column_of(ds, "category")
    assert kinds["unscorable"][UNREAD] and not any(kinds["unscorable"][:UNREAD])


def test_the_turn_that_decides_is_that_of_the_span_with_the_largest_score(review, scored):
    _, ds, _ = scored
    turns = unpacked(review.overview()["turns"], "<i2")
    for place, (by, spans) in enumerate(zip(column_of(ds, "largest_rank_by"), column_of(ds, "spans"), strict=True)):
        if place == UNREAD:
            assert turns[place] == -1
        else:
            scores = column_of(ds, f"{by}_span_scores")[place]
            assert turns[place] == spans[int(np.argmax(scores))]["turn"]
    assert set(turns[[0, 1]]) <= {1, 3}


def test_a_row_says_nothing_unless_asked(review, scored):
    hidden = json.dumps([review.overview(), review.map(), review.row(HOSTILE, text=False), review.row(1, text=False)])
    for messages in column_of(scored[1], "messages")[:12]:
        assert all(len(turn["content"]) < 12 or turn["content"][:40] not in hidden for turn in messages)
    said = review.row(1, text=True)
    assert [turn["text"] for turn in said["sides"][0]["turns"]] == [
        turn["content"] for turn in column_of(scored[1], "messages")[1]
    ]
    assert all("text" in near for near in said["references"]["unsafe"])
    assert not any("text" in near for near in review.row(1, text=False)["references"]["unsafe"])


def test_control_and_direction_marks_are_taken_out_and_markup_stays_text(review):
    assert "\u202e" in MARKUP and "\x1b" in MARKUP
    assert review.row(HOSTILE, text=True)["sides"][0]["turns"][1]["text"] == PLAIN


def test_a_row_shows_every_score_its_references_its_spans_and_its_copies(review, scored):
    _, ds, _ = scored
    body = review.row(ORIGINAL, text=False)
    scores = {line["name"]: line["score"] for line in body["scores"]}
    assert scores == {
        name: pytest.approx(column_of(ds, name)[ORIGINAL], rel=1e-6)
        for name in ("probe_score", "shift_score", "largest_rank_score")
    }
    probe = np.array(column_of(ds, "probe_score"), float)
    above = next(line["above"] for line in body["scores"] if line["name"] == "probe_score")
    assert above == (probe[np.isfinite(probe)] < probe[ORIGINAL]).mean()
    assert len(body["references"]["unsafe"]) == len(body["references"]["safe"]) == 5
    assert body["copies"] == [COPY] and body["groups"]["category"] == "cooking"
    (spans,) = [turn["spans"] for turn in body["sides"][0]["turns"] if turn["spans"]]
    assert sum(span["decides"] for span in spans) == 1 and [span["score"] for span in spans] == pytest.approx(
        column_of(ds, f"{column_of(ds, 'largest_rank_by')[ORIGINAL]}_span_scores")[ORIGINAL], rel=1e-6
    )
    assert body["row_id"] == column_of(ds, "row_id")[ORIGINAL]
    unread = review.row(UNREAD, text=False)
    assert unread["reason"] and not unread["references"]["unsafe"]


def test_a_search_finds_what_python_finds(review, scored):
    texts = [" ".join(turn["content"] for turn in row) for row in column_of(scored[1], "messages")]
    words = texts[20].split()[1].upper()
    found = unpacked(review.search(words)["rows"], "<i4").tolist()
    assert found == [place for place, text in enumerate(texts) if words.lower() in text.lower()] and 20 in found
    row_id = review.rows.ids[33]
    assert unpacked(review.search(row_id)["rows"], "<i4").tolist() == [33]
    assert review.search(" ")["count"] == 60 and review.search("[.*")["count"] == 0


def test_the_map_shows_the_plane_of_the_largest_spread(review, scored):
    """By a second route: a full SVD of the standardised vectors of the deciding spans."""
    _, ds, steps = scored
    found = review.row_map
    places = found.rows[np.isfinite(found.rows).all(1)]
    unsafe, safe = (
        side.astype(np.float64) for side in _references(steps).vectors(5 if found.column.endswith("5") else 3)
    )
    both = np.concatenate([unsafe, safe])
    vectors = [
        vectors[at] for vectors, at, reason in zip(column_of(ds, found.column), column_of(ds, "probe_span"),
                                                   column_of(ds, "unscorable"), strict=True) if not reason
    ]  # fmt: skip
    scaled = (np.array(vectors, np.float64) - both.mean(0)) / both.std(0)
    centred = scaled - scaled.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    by_hand = centred @ axes[:2].T
    for axis in (0, 1):
        assert abs(np.corrcoef(by_hand[:, axis], places[:, axis])[0, 1]) > 0.999
    assert found.share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=0.02)
    assert np.isnan(found.rows[UNREAD]).all() and len(found.unsafe) == len(unsafe)


def _references(steps):
    from hf_safefilter.decide.explanations import compared_at
    from hf_safefilter.references import references

    return references(compared_at(steps[1])[0])


def test_a_decision_is_on_the_disk_and_counts_for_copies(review):
    body = review.decide(ORIGINAL, {"decision": "drop", "who": " ada ", "threshold": 0.5, "note": "a \x1b[31mnote"})
    (line,) = [json.loads(line) for line in review.log.path.read_text().splitlines()]
    assert line["row_id"] == review.rows.ids[ORIGINAL] and line["who"] == "ada" and line["note"] == "a note"
    assert line["score"] == review.rows.scores[ORIGINAL] and line["threshold"] == 0.5
    assert body["place"] == COPY and review.row(COPY, text=False)["decisions"][0]["decision"] == "drop"
    review.decide(COPY, {"decision": "withdrawn", "who": "ada"})
    assert review.row(ORIGINAL, text=False)["decisions"] == [] and not review.log.current


def test_the_command_takes_the_decisions_over(review, call, tmp_path):
    assert "--decisions" not in review.overview()["command"]  # there is no such file yet
    said = review.decide(int(np.nanargmax(review.rows.scores)), {"decision": "keep", "who": "ada"})
    words = shlex.split(said["command"].replace("THRESHOLD", repr(review.is_safe.threshold)))
    assert words == shlex.split(review.command(repr(review.is_safe.threshold))) and words[1] == "card"
    words = [{"LICENSE": "mit", "out": str(tmp_path / "out")}.get(word, word) for word in words]
    assert call(*words[1:], "--anyway")[0] == 0
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["counts"]["dropped"] == 11  # 11 above the threshold and one unread, less the kept one
    assert record["selection"]["threshold"] == review.is_safe.threshold and record["review"]["kept"] == 1


def test_a_decision_that_masks_is_taken_over_by_select_as_it_is(review, call, tmp_path):
    ways = ("--by", "probe_score", "--threshold", review.is_safe.threshold, "--action", "mask")
    assert call("select", review._folder, *ways, "--output", tmp_path / "decided", "--anyway")[0] == 0
    again = Review.of(tmp_path / "decided", review.log.path)
    words = shlex.split(again.command(repr(again.is_safe.threshold)))
    assert words[1] == "select" and words[words.index("--action") + 1] == "mask"
    words[words.index("decided")] = str(tmp_path / "more")
    assert call(*words[1:], "--anyway")[0] == 0
    assert Review.of(tmp_path / "more", review.log.path).is_safe == again.is_safe


def test_several_reviewers_and_their_agreement(review):
    for place, (one, other) in {1: ("keep", "keep"), 2: ("drop", "keep"), 3: ("drop", "drop")}.items():
        review.decide(place, {"decision": one, "who": "ada"})
        body = review.decide(place, {"decision": other, "who": "bob"})
    assert body["reviewers"] == ["ada", "bob"] and (body["agreement"]["rows"], body["agreement"]["agreed"]) == (3, 2)


def test_turns_are_masked_only_where_there_are_turns(review):
    review.decide(0, {"decision": "mask", "who": "ada", "turns": [3, 1, 3]})
    assert review.row(0, text=False)["decisions"][0]["turns"] == (1, 3)
    for values in (
        {"decision": "mask", "turns": [4]},
        {"decision": "mask", "turns": [-1]},
        {"decision": "mask", "turns": ["1"]},
        {"decision": "mask", "turns": {"a": 1}},
        {"decision": "mask"},
        {"decision": "keep", "turns": [1]},
        {"decision": "delete"},
        {"decision": ["keep"]},
        {"decision": "keep", "who": " \u202e "},
        {"decision": "keep", "who": "a" * 81},
        {"decision": "keep", "note": "a" * 4001},
        {"decision": "keep", "note": 3},
    ):
        with pytest.raises(OptionError):
            review.decide(0, {"who": "ada"} | values)
    with pytest.raises(OptionError, match="no row 60"):
        review.decide(60, {"decision": "keep", "who": "ada"})
    assert len(review.log.path.read_text().splitlines()) == 1


def test_a_killed_process_loses_no_decision_and_a_torn_line_does_no_harm(scored, tmp_path):
    log = tmp_path / "decisions.jsonl"
    code = (
        "import os, sys; from pathlib import Path; from hf_safefilter.review.review import Review\n"
        "review = Review.of(Path(sys.argv[1]), Path(sys.argv[2]), by='probe_score')\n"
        "for place in range(12): review.decide(place, {'decision': 'keep', 'who': 'ada'})\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(scored[0]), str(log)], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    with log.open("ab") as stream:
        stream.write(b'{"row_id": "torn')
    again = Review.of(scored[0], log, by="probe_score")
    assert len(again.overview()["decisions"]) == 11  # two of the twelve rows are one
    again.decide(20, {"decision": "drop", "who": "ada"})
    assert len(DecisionLog(log).current) == 12


def test_a_damaged_log_and_a_log_in_the_signed_folder_are_refused(scored, tmp_path):
    log = tmp_path / "decisions.jsonl"
    log.write_text('{"row_id": "a", "decision": "explode", "who": "b", "when": "c"}\n')
    with pytest.raises(IntegrityError, match="line 1"):
        Review.of(scored[0], log, by="probe_score")
    with pytest.raises(OptionError, match="signed"):
        Review.of(scored[0], scored[0] / "train" / "decisions.jsonl", by="probe_score")


def test_a_review_goes_on_without_the_references_of_another_machine(review, monkeypatch):
    def missing(*_, **__):
        raise SafefilterError("not here")

    monkeypatch.setattr("hf_safefilter.review.row_view.explain", missing)
    monkeypatch.setattr("hf_safefilter.review.review.verdict_without_labels", missing)
    monkeypatch.setattr("hf_safefilter.review.row_map.coordinates", missing)
    body = review.row(1, text=True)
    assert body["references"] == {} and body["sides"][0]["turns"][1]["text"]
    assert review.verdict()["finding"] == "not known"
    assert review.map()["unsafe"] == "" and review.map()["rows"]


def test_long_and_single_values_are_no_kinds():
    from hf_safefilter.review.row_columns import _are_kinds

    assert _are_kinds(["a", "b"] * 10) and _are_kinds(["a", "b", None, None] * 10)
    assert not _are_kinds(["a"] * 20) and not _are_kinds([str(n) for n in range(20)])
    assert not _are_kinds(["a" * 61, "b"] * 10) and not _are_kinds(["a\nb", "b"] * 10)
    assert Groups.of(["b", "a\u202e", "b", None]).names == ("b", "a")
