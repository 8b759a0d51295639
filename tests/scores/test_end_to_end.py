"""From text to score with a real model: the references and the rows are read alike."""

import numpy as np
import pytest
from datasets import Dataset
from small_models import save_small_model
from stand_in import safe_rows, unsafe_rows

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.anchors import anchor
from hf_safefilter.scores.larf import LarfScore, larf
from hf_safefilter.scores.nearest import NearestScore
from hf_safefilter.scores.saft import SaftScore, fit_saft


@pytest.fixture(scope="module")
def embed(tmp_path_factory):
    return EmbedLayers(str(save_small_model(tmp_path_factory.mktemp("models") / "llama")), [2, "norm"], device="cpu")


@pytest.fixture(scope="module")
def index(embed):
    return ReferenceIndex.build(unsafe_rows(), safe_rows(7), embed, license="mit", source="the tests")


@pytest.fixture(scope="module")
def embedded(embed):
    rows = [*safe_rows(20), {"prompt": "Half", "response": ""}, *unsafe_rows(3)]
    return Dataset.from_list(rows).map(embed, batched=True, batch_size=9)


def by_row(scores, offsets):
    """The largest score of each row, one row at a time."""
    bounds = zip(offsets[:-1], offsets[1:], strict=True)
    return [max(scores[start:stop], default=np.nan) for start, stop in bounds]


def test_scores_follow_from_the_rows(embed, index, embedded):
    read, _ = embed.vectors(embedded.select_columns(["prompt", "response"]))
    found = embedded.map(LarfScore(index, 2, standardize=False), batched=True)
    found = found.map(NearestScore(index, "norm", k=1, standardize=False), batched=True)
    expected = by_row(larf(read.vectors[2].astype(np.float64), *index.vectors(2)), read.offsets)
    scores = np.array(found["larf_score"], dtype=np.float64)
    np.testing.assert_allclose(scores, expected, atol=2e-3)  # the column is float16
    assert np.isnan(scores).tolist() == [place == 20 for place in range(24)]
    unsafe, safe = (anchor(read.vectors["norm"], side) for side in index.vectors("norm"))
    scores = np.array(found["nearest_score"], dtype=np.float64)
    np.testing.assert_allclose(scores, by_row(unsafe - safe, read.offsets), atol=2e-3)


def test_long_rows_are_read_in_several_spans_and_so_are_references(index, embedded):
    assert max(map(len, embedded["spans"])) > 1 and len(index.vectors(2)[1]) > index.counts["safe"]
    assert [len(cell) for cell in embedded["emb_layer_2"]] == [len(cell) for cell in embedded["spans"]]


def test_rows_among_the_references_find_themselves(index, embedded):
    assert index.overlap(embedded["row_id"]) == [*embedded["row_id"][:7], *embedded["row_id"][21:]]
    nearest = embedded.map(NearestScore(index, 2, k=1), batched=True)["nearest_unsafe"]
    assert [ids[0] for ids in nearest[21:]] == embedded["row_id"][21:]
    assert nearest[20] == [""]


def test_how_the_rows_were_read_is_part_of_the_references(embed, index):
    assert index.embed == embed.describe()
    assert index.summary()["revision"] == embed.revision
    other = EmbedLayers(embed.model, [2, "norm"], position="last", device="cpu")
    assert ReferenceIndex.build(unsafe_rows(), safe_rows(7), other, license="mit", source="the tests") != index


def test_saft_needs_the_rows_alone(embedded):
    subspace = fit_saft(embedded, 2)
    cells = embedded["emb_layer_2"]
    spans = sum(map(len, cells))
    assert (subspace.facts["rows"], subspace.facts["skipped"], subspace.facts["spans"]) == (23, 1, spans)
    strength = subspace.strength(np.array([vector for cell in cells for vector in cell], np.float64))
    np.testing.assert_allclose(strength.sum(), subspace.sigma[0] ** 2, rtol=1e-5)
    scores = np.array(embedded.map(SaftScore(subspace), batched=True)["saft_score"], dtype=np.float64)
    np.testing.assert_allclose(scores, by_row(strength, np.cumsum([0, *map(len, cells)])), rtol=1e-5)


def test_references_of_any_text_survive(embed):
    odd = [{"prompt": "half \ud83d pair", "response": "naïve ☂"}]
    index = ReferenceIndex.build(unsafe_rows(2), odd, embed, license="mit", source="the tests")
    assert index.rows("safe")[0].conversation == as_conversations(odd)[0]


def test_both_sides_of_preference_pairs_are_scored(embed, index):
    pairs = [
        {"prompt": f"Ask {n}", "chosen": f"Sorry, {'no ' * n}{n}.", "rejected": f"Sure, {'step by step ' * n}{n}."}
        for n in range(5)
    ]
    sides = [[{"prompt": row["prompt"], "response": row[side]} for row in pairs] for side in ("chosen", "rejected")]
    step = LarfScore(index, 2, pairs=True)
    found = Dataset.from_list(pairs).map(embed, batched=True).map(step, batched=True)
    chosen, rejected = (
        np.array(Dataset.from_list(rows).map(embed, batched=True).map(step, batched=True)["larf_score"])
        for rows in sides
    )
    np.testing.assert_allclose(found["larf_score"], chosen, atol=2e-3)
    np.testing.assert_allclose(found["larf_rejected_score"], rejected, atol=2e-3)
    np.testing.assert_allclose(found["larf_pair_shift"], chosen - rejected, atol=4e-3)
    assert all(not spans[at]["rejected"] for spans, at in zip(found["spans"], found["larf_span"], strict=True))
    assert len(set(found["row_id"])) == 5
