"""Rows that are scored again have what scoring them anew would give, and keep all else."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.engine.local import add_ranks, embed_rows, score_rows
from hf_safefilter.labeling.rescored import rescored
from hf_safefilter.saved.saved_rows import Saved
from hf_safefilter.scores import make_score
from hf_safefilter.scores.probe import EnsembleScore, Probe, ProbeScore, fit_ensemble, fit_probe
from hf_safefilter.scores.ranks import Ranks, RankScore
from hf_safefilter.toy.corpus import mixed_rows, reference_rows


@pytest.fixture(scope="module")
def saved():
    embed = EmbedLayers("toy", (3, 5), position="mean,last_prompt")
    index = ReferenceIndex.build(*reference_rows(12, 3), embed, license="mit", source="a test")
    rows = mixed_rows(24, 0.3, 3)
    ds = embed_rows(DatasetDict(a=Dataset.from_list(rows[:10]), b=Dataset.from_list(rows[10:])), embed)
    steps = [embed, make_score("length", {})]
    steps += [make_score(name, {}, references=index, layer=5, layers=(3, 5)) for name in ("larf", "probe", "shift")]
    for step in steps[1:]:
        ds = score_rows(ds, step)
    for columns in (["probe_score", "shift_score"], ["length_score"]):
        how = "largest_rank" if len(columns) > 1 else "rank_average"
        ds, rank = add_ranks(ds, columns, how)
        steps.append(rank)
    return Saved(ds, steps, "rows", "none")


@pytest.fixture(scope="module")
def others(saved):
    return ReferenceIndex.build(*reference_rows(16, 5), saved.steps[0], license="mit", source="another test")


def column(saved, name):
    return np.concatenate([np.array(part[name][:], float) for part in saved.rows.values()])


def test_another_probe_changes_its_scores_and_the_ranks_that_go_by_them(saved, others):
    probe = fit_probe(others, (3, 5))
    again = rescored(saved, probe=probe)
    alone = score_rows(saved.rows.remove_columns(["probe_score", "probe_span", "probe_span_scores"]), ProbeScore(probe))
    new = np.concatenate([np.array(part["probe_score"][:], float) for part in alone.values()])
    np.testing.assert_array_equal(column(again, "probe_score"), new)
    assert (new != column(saved, "probe_score")).any()
    for name in ("larf_score", "shift_score", "length_score", "rank_average_score"):
        np.testing.assert_array_equal(column(again, name), column(saved, name))
    (rank,) = [step for step in again.steps if getattr(step, "METHOD", "") == "largest_rank"]
    of_probe, scores = Ranks.of(rank.ranks).sorted[0], new.astype(np.float32)
    np.testing.assert_array_equal(of_probe, np.sort(scores))
    shares = np.searchsorted(of_probe, scores, "left") + np.searchsorted(of_probe, scores, "right")
    assert (column(again, "largest_rank_score") >= shares / (2 * len(new)) - 1e-6).all()
    assert sorted(again.rows["a"].column_names) == sorted(saved.rows["a"].column_names)
    assert {type(step) for step in again.steps} == {type(step) for step in saved.steps}
    assert again.rows["b"]["row_id"][:] == saved.rows["b"]["row_id"][:]


def test_a_probe_takes_the_place_of_those_at_its_own_layers(saved):
    references = next(step.references for step in saved.steps if isinstance(step, ProbeScore))
    index = ReferenceIndex.of(references)
    step = EnsembleScore(fit_ensemble(index, (3, 5)))
    both = replace(saved, rows=score_rows(saved.rows, step), steps=[*saved.steps, step])
    narrow = rescored(both, probe=fit_probe(index, (3, 5), shrinkage=0.9))
    np.testing.assert_array_equal(column(narrow, "ensemble_score"), column(both, "ensemble_score"))
    assert (column(narrow, "probe_score") != column(both, "probe_score")).any()
    wide = rescored(both, probe=fit_ensemble(index, (3, 5), shrinkage=0.9))
    assert (column(wide, "ensemble_score") != column(both, "ensemble_score")).any()
    np.testing.assert_array_equal(column(wide, "probe_score"), column(both, "probe_score"))
    kept = [one for one in both.steps if type(one) is not ProbeScore and not isinstance(one, RankScore)]
    alone = replace(both, rows=both.rows.remove_columns(["probe_score", "probe_span", "probe_span_scores"]), steps=kept)
    beside = rescored(alone, probe=fit_probe(index, (3,)))
    np.testing.assert_array_equal(column(beside, "ensemble_score"), column(both, "ensemble_score"))
    assert "probe_score" in beside.rows["a"].column_names


def test_new_references_reach_every_probe(saved, others):
    mine = next(step.references for step in saved.steps if isinstance(step, ProbeScore))
    step = EnsembleScore(fit_ensemble(ReferenceIndex.of(mine), (3, 5)))
    both = replace(saved, rows=score_rows(saved.rows, step), steps=[*saved.steps, step])
    again = rescored(both, probe=fit_ensemble(others, (3, 5)), references=others, instead_of=[mine])
    probes = [one for one in again.steps if isinstance(one, ProbeScore)]
    assert [one.references for one in probes] == [others.digest] * 2 and len({type(one) for one in probes}) == 2
    wider = rescored(replace(both, steps=[one for one in both.steps if type(one) is not ProbeScore],
                             rows=both.rows.remove_columns(["probe_score", "probe_span", "probe_span_scores",
                                                            "largest_rank_score", "largest_rank_by"])),
                     probe=fit_ensemble(ReferenceIndex.of(mine), (5,)))  # fmt: skip
    assert [type(one) for one in wider.steps if isinstance(one, ProbeScore)] == [EnsembleScore]


def test_other_references_are_those_of_every_score_that_compares_with_them(saved, others):
    mine = next(step.references for step in saved.steps if getattr(step, "METHOD", "") == "larf")
    again = rescored(saved, probe=fit_probe(others, (3, 5)), references=others, instead_of=[mine])
    same = rescored(saved, references=others, instead_of=["sha256:" + 64 * "0"])
    assert [step for step in same.steps if step not in saved.steps] == []  # scores with other references stay
    for step in again.steps:
        if getattr(step, "METHOD", "") in ("larf", "shift"):
            assert step.references == others.digest
    probe = next(step for step in again.steps if isinstance(step, ProbeScore))
    assert probe.references == others.digest and Probe.of(probe.probe).facts["layers"] == [3, 5]
    for name in ("larf_score", "shift_score", "probe_score"):
        assert (column(again, name) != column(saved, name)).any()
    fresh = make_score("larf", {}, references=others, layer=5)
    np.testing.assert_array_equal(
        column(again, "larf_score"),
        np.concatenate([np.array(part.map(fresh, batched=True)["larf_score"][:], float)
                        for part in saved.rows.remove_columns(list(fresh.produces())).values()]),
    )  # fmt: skip


def test_rows_without_a_probe_get_one_beside_their_scores(saved, others):
    left = [step for step in saved.steps if getattr(step, "METHOD", "") not in ("probe", "largest_rank")]
    columns = [name for step in saved.steps if step not in left for name in step.produces()]
    bare = Saved(saved.rows.remove_columns(columns), left, "rows", "none")
    again = rescored(bare, probe=fit_probe(others, 5))
    assert "probe_score" in again.rows["a"].column_names and len(again.steps) == len(left) + 1
    np.testing.assert_array_equal(column(again, "larf_score"), column(saved, "larf_score"))
