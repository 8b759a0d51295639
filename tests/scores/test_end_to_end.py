"""From text to score with a real model: the references and the rows are read alike."""

import numpy as np
import pytest
from datasets import Dataset
from small_models import save_small_model
from stand_in import safe_rows, unsafe_rows

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


def test_scores_follow_from_the_rows(embed, index, embedded):
    vectors, _, _ = embed.vectors(embedded.select_columns(["prompt", "response"]))
    found = embedded.map(LarfScore(index, 2), batched=True).map(NearestScore(index, "norm", k=1), batched=True)
    expected = larf(vectors[2].astype(np.float64), *index.vectors(2))
    scores = np.array(found["larf_score"], dtype=np.float64)
    np.testing.assert_allclose(scores, expected, atol=2e-3)  # the column is float16
    assert np.isnan(scores).tolist() == [place == 20 for place in range(24)]
    gap = anchor(vectors["norm"], index.vectors("norm")[0]) - anchor(vectors["norm"], index.vectors("norm")[1])
    np.testing.assert_allclose(np.array(found["nearest_score"], dtype=np.float64), gap, atol=2e-3)


def test_rows_among_the_references_find_themselves(index, embedded):
    assert index.overlap(embedded["row_id"]) == [*embedded["row_id"][:7], *embedded["row_id"][21:]]
    nearest = embedded.map(NearestScore(index, 2, k=1), batched=True)["nearest_unsafe"]
    assert [ids[0] for ids in nearest[21:]] == embedded["row_id"][21:]
    assert nearest[20] == [""]


def test_how_the_rows_were_read_is_part_of_the_references(embed, index):
    assert index.embed == embed.describe()
    assert index.summary()["revision"] == embed.revision
    other = EmbedLayers(embed.model, [2, "norm"], position="mean_response", device="cpu")
    assert ReferenceIndex.build(unsafe_rows(), safe_rows(7), other, license="mit", source="the tests") != index


def test_saft_needs_the_rows_alone(embedded):
    subspace = fit_saft(embedded, 2)
    assert (subspace.facts["rows"], subspace.facts["skipped"]) == (23, 1)
    scores = np.array(embedded.map(SaftScore(subspace), batched=True)["saft_score"], dtype=np.float64)
    np.testing.assert_allclose(np.nansum(scores), subspace.sigma[0] ** 2, rtol=1e-5)


def test_references_of_any_text_survive(embed):
    odd = [{"prompt": "half \ud83d pair", "response": "naïve ☂"}]
    index = ReferenceIndex.build(unsafe_rows(2), odd, embed, license="mit", source="the tests")
    assert index.rows("safe")[0].messages == (("user", "half \ud83d pair"), ("assistant", "naïve ☂"))
