"""What the deciding score is held to where no labels speak."""

import json

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter import (
    EmbedLayers,
    EnsembleScore,
    LarfScore,
    NearestScore,
    ProbeScore,
    RankAverage,
    ReferenceIndex,
    choose_reading,
    demo,
    fit_ensemble,
    fit_probe,
)
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.decide.verdict import verdict_from_labels
from hf_safefilter.engine.local import add_ranks, embed_rows, score_rows
from hf_safefilter.errors import IntegrityError
from hf_safefilter.locate.cross_validation import choose_layer
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.score_verdict import held_out
from hf_safefilter.saved.decision import DECISION, SCORED, read_decision, write_decision
from hf_safefilter.saved.saved_rows import Saved
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.storage.recorded_files import RECORD, record_files
from hf_safefilter.toy.corpus import reference_rows

FACTS = {"license": "mit", "source": "a barn"}
EMBED = EmbedLayers("toy", [2, 5])


@pytest.fixture(scope="module")
def references() -> ReferenceIndex:
    return ReferenceIndex.build(*reference_rows(20, 3), EMBED, license="mit", source="a test")


@pytest.fixture(scope="module")
def larf(references) -> tuple[Dataset, list]:
    rows = embed_rows(Dataset.from_list(demo.mixed_rows()[:120]), EMBED)
    steps = [LarfScore(references, 5), NearestScore(references, 2)]
    for step in steps:
        rows = score_rows(rows, step)
    return rows, [EMBED, *steps]


def test_a_score_is_held_to_its_references_at_its_own_layer(references, larf):
    tried = {(one.method, one.layer): one for one in choose_layer(references, ("larf", "nearest")).candidates}
    _, steps = larf
    for column, key in (("larf_score", ("larf", 5)), ("nearest_score", ("nearest", 2))):
        found = held_out(column, steps)
        assert (found.value, found.low) == (tried[key].auroc, tried[key].low)
        assert found.low <= found.value <= found.high <= 1
    assert held_out("larf_pair_shift", [EMBED, LarfScore(references, 5, pairs=True)]) == held_out("larf_score", steps)


def test_an_ensemble_is_held_to_its_references_and_at_a_layer_that_is_not_tried_nothing_is_known():
    embed = EmbedLayers("toy", [2, 5, "norm"], position="mean,last_prompt")
    index = ReferenceIndex.build(*reference_rows(20, 3), embed, license="mit", source="a test")
    reading = choose_reading(index, ("ensemble",))
    (auroc,) = [one.auroc for one in reading.readings if one.layers == (2, 5)]
    found = held_out("ensemble_score", [embed, EnsembleScore(fit_ensemble(index, (2, 5)))])
    assert found is not None and found.value == auroc
    assert held_out("ensemble_score", [embed, EnsembleScore(fit_ensemble(index, (2, "norm")))]) is None
    assert held_out("probe_score", [embed, ProbeScore(fit_probe(index, (5, "norm")))]) is None
    assert held_out("probe_score", [embed, ProbeScore(fit_probe(index, ("5_shift",)))]) is not None


def test_a_score_that_reads_references_in_another_way_is_not_held_to_what_it_does_not_read(references):
    class Shifted(LarfScore):
        __slots__ = ()

        def vectors(self, batch):
            raise NotImplementedError

    assert held_out("larf_score", [EMBED, Shifted(references, 5)]) is None


def test_no_other_layer_is_tried(larf, monkeypatch):
    asked = []
    vectors = ReferenceIndex.vectors
    monkeypatch.setattr(ReferenceIndex, "vectors", lambda self, layer: asked.append(layer) or vectors(self, layer))
    held_out("larf_score", larf[1])
    assert set(asked) == {5}


def test_an_average_is_held_to_the_weakest_of_its_parts(larf):
    rows, steps = larf
    _, rank = add_ranks(rows, ["larf_score", "nearest_score"])
    parts = [held_out(column, steps) for column in ("larf_score", "nearest_score")]
    assert isinstance(rank, RankAverage)
    assert held_out("rank_average_score", [*steps, rank]) == min(parts, key=lambda part: part.low)
    length = LengthScore()
    _, rank = add_ranks(score_rows(rows, length), ["larf_score", "length_score"])
    assert held_out("rank_average_score", [*steps, length, rank]) is None


def test_what_cannot_be_tried_is_not_known(larf):
    few = ReferenceIndex.build(*reference_rows(5, 3), EMBED, license="mit", source="a test")
    assert held_out("larf_score", [EMBED, LarfScore(few, 5)]) is None
    assert held_out("length_score", [LengthScore()]) is None
    assert held_out("cheese_score", larf[1]) is None


def test_gather_judges_by_labels_if_they_are_enough_and_else_by_the_references(larf):
    rows, steps = larf
    is_safe = IsSafe("larf_score", 0.3)
    blind = gather(rows, is_safe, steps=steps, **FACTS)
    assert blind.judged().basis == "references" and blind.judged().trusted
    unsafe = np.array([label == "unsafe" for label in rows["label"]])
    scores, lengths = np.array(rows["larf_score"]), np.array([len(text) for text in rows["response"]], float)
    by_labels = verdict_from_labels("larf_score", scores, unsafe, lengths)
    seen = gather(rows, is_safe, steps=steps, verdict=by_labels, anyway=True, **FACTS)
    assert seen.judged() == by_labels
    assert seen.anyway is False  # a good verdict needs no insisting
    few = verdict_from_labels("larf_score", scores[:9], unsafe[:9], lengths[:9])
    assert few.finding == "too few labels"
    assert gather(rows, is_safe, steps=steps, verdict=few, **FACTS).judged() == blind.judged()


def test_a_record_without_a_verdict_is_read_and_a_damaged_one_is_said(larf):
    rows, steps = larf
    record = gather(rows, IsSafe("larf_score", 0.3), steps=steps, **FACTS)
    assert Provenance.from_json(record.to_json()) == record
    body = record.to_dict()
    old = Provenance.from_json(json.dumps({key: body[key] for key in body if key not in ("verdict", "anyway")}))
    assert (old.judged(), old.anyway) == (None, False)
    old.require_trusted()
    with pytest.raises(IntegrityError):
        record.model_copy(update={"verdict": {}}).require_trusted()


def test_a_decision_on_disk_has_its_verdict(larf, tmp_path):
    rows, steps = larf
    saved, is_safe = Saved(rows, steps, "rows", "none"), IsSafe("larf_score", 0.3)
    verdict = gather(rows, is_safe, steps=steps, **FACTS).judged()
    write_decision(tmp_path / "a", saved, is_safe, verdict, anyway=True)
    read = read_decision(tmp_path / "a")
    assert (read.is_safe, read.verdict, read.anyway, read.saved.trusted) == (is_safe, verdict, True, False)
    write_decision(tmp_path / "b", saved, is_safe)
    assert (read_decision(tmp_path / "b").verdict, read_decision(tmp_path / "b").anyway) == (None, False)
    record = json.loads((tmp_path / "a" / DECISION).read_text())
    del record["verdict"], record["anyway"]  # as versions without verdicts wrote it

    def written(text):
        (tmp_path / "a" / DECISION).write_text(text)
        record_files(tmp_path / "a", DECISION, [DECISION, f"{SCORED}/{RECORD}"])
        return read_decision(tmp_path / "a")

    assert (written(json.dumps(record)).verdict, written(json.dumps(record)).anyway) == (None, False)
    for damaged in ("[]", "[1]", "no json", json.dumps(record | {"verdict": {"finding": "fine"}})):
        with pytest.raises(IntegrityError):
            written(damaged)
