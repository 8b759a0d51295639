"""References that were read in several spans: whose each vector is, what is refused, and what is counted."""

import logging

import numpy as np
import pytest
from datasets import Dataset
from stand_in import WIDTH, StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter import EmbedLayers
from hf_safefilter.cache import RowVectors
from hf_safefilter.data.conversations import as_conversations, response_of
from hf_safefilter.data.ragged import offsets_of
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.spans import SPAN
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.larf import LarfScore, larf
from hf_safefilter.scores.nearest import NearestScore

SAID = {"license": "mit", "source": "the tests"}
UNSAFE = [{"prompt": f"Do harm {n}", "response": "Sure " + "step " * (n % 3) + f"is {n}"} for n in range(7)]
SAFE = [{"prompt": f"Do harm {n}", "response": "Sorry" + " no" * n} for n in range(5)]


class ByWord(StandIn):
    """Reads each word of the answer as a span."""

    def vectors(self, rows):
        read = as_conversations(rows)
        words = [response_of(one).split() for one in read]
        every = [f"{' '.join(one)}, word {place}" for one in words for place in range(len(one))]
        found = {layer: np.array([vector_of(word, layer) for word in every]) for layer in self.layers}
        spans = np.zeros(len(every), SPAN)
        none = np.zeros(len(read), bool)
        offsets = offsets_of(np.array([len(one) for one in words]))
        return RowVectors(offsets, spans, found, none, np.full(len(read), "", object)), read


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))


@pytest.fixture
def index(store):
    return ReferenceIndex.build(UNSAFE, SAFE, ByWord(), **SAID)


def owners_by_hand(rows):
    return [place for place, row in enumerate(rows) for _ in row["response"].split()]


def test_each_vector_has_its_row(index):
    assert index.counts == {"unsafe": 7, "safe": 5}
    for side, rows, vectors in zip(("unsafe", "safe"), (UNSAFE, SAFE), index.vectors(2), strict=True):
        assert index.owners(side).tolist() == owners_by_hand(rows)
        assert [row.spans for row in index.rows(side)] == [len(row["response"].split()) for row in rows]
        assert len(vectors) == sum(row.spans for row in index.rows(side)) == index.facts["spans"][side]
        first = rows[2]["response"]
        at = owners_by_hand(rows).index(2)
        np.testing.assert_array_equal(vectors[at], vector_of(f"{first}, word 0"))


def test_search_gives_rows_not_vectors(index):
    queries = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32)
    queries[3] = 0
    found = index.search(queries, 2, 6)
    assert found.position.max() < index.counts["unsafe"]
    vectors = index.unit(2)[0].astype(np.float64)
    owners = np.array(owners_by_hand(UNSAFE))
    ids = [row_id(one) for one in as_conversations(UNSAFE)]
    for at, query in enumerate(queries):
        if at == 3:
            assert found.position[at].tolist() == [-1] * 6 and found.rows[at] == [] and set(found.row_id[at]) == {""}
            continue
        cosines = vectors @ query / np.linalg.norm(query)
        order = np.argsort(-cosines)[:6]
        assert found.position[at].tolist() == owners[order].tolist()
        assert found.row_id[at].tolist() == [ids[row] for row in owners[order]]
        assert [row.position for row in found.rows[at]] == owners[order].tolist()
        np.testing.assert_allclose(found.similarity[at], cosines[order], atol=1e-6)


def test_as_many_neighbours_as_there_are_vectors(index):
    spans = index.facts["spans"]["safe"]
    assert spans > index.counts["safe"]
    assert index.search(np.ones(WIDTH), 2, spans, side="safe").position.shape == (1, spans)
    with pytest.raises(OptionError, match=f"does not fit {spans} safe references"):
        index.search(np.ones(WIDTH), 2, spans + 1, side="safe")


def test_the_explanation_of_a_score_names_rows(index):
    named = NearestScore(index, 2, k=3, standardize=False)({"emb_layer_2": index.vectors(2)[0]})["nearest_unsafe"]
    ids = [row_id(one) for one in as_conversations(UNSAFE)]
    assert named[:, 0].tolist() == [ids[owner] for owner in owners_by_hand(UNSAFE)]


def test_every_vector_of_the_references_counts(index):
    rows = np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)
    found = LarfScore(index, 2, standardize=False)({"emb_layer_2": rows})["larf_score"]
    np.testing.assert_allclose(found, larf(rows, *index.vectors(2)), atol=1e-6)


def test_pairs_of_references_need_one_span_each(index):
    with pytest.raises(DataError, match="must be read in one span") as refused:
        LarfScore(index, 2, top=2)
    assert "7 unsafe references of several turns or windows" in str(refused.value)
    assert "`window=None`" in str(refused.value)
    one_each = ReferenceIndex.build(unsafe_rows(), safe_rows(), StandIn(), **SAID)
    one_each.require_one_span_each("nothing")
    assert np.isfinite(LarfScore(one_each, 2, top=2)({"emb_layer_2": np.ones((1, WIDTH))})["larf_score"]).all()


def test_saved_and_loaded_they_have_the_same_spans(index, tmp_path):
    again = ReferenceIndex.load(index.save(tmp_path / "saved"))
    assert again == index and again.rows("unsafe") == index.rows("unsafe")
    assert again.owners("safe").tolist() == owners_by_hand(SAFE)


def test_a_real_reading_has_the_spans_of_the_same_rows_in_a_data_set():
    embed = EmbedLayers("toy", [3], device="cpu")
    long = [row | {"response": row["response"] + " This is how it is done." * 9} for row in unsafe_rows(4)]
    index = ReferenceIndex.build(long, safe_rows(4), embed, **SAID)
    spans = Dataset.from_list(long).map(embed, batched=True)["spans"]
    assert [row.spans for row in index.rows("unsafe")] == [len(one) for one in spans]
    assert index.rows("unsafe")[0].spans > 2
    with pytest.raises(DataError, match="one span"):
        LarfScore(index, 3, top=2)
    whole = EmbedLayers("toy", [3], window=None, device="cpu")
    assert LarfScore(ReferenceIndex.build(long, safe_rows(4), whole, **SAID), 3, top=2).top == 2


PAIRS = [{"prompt": f"Do harm {n}", "chosen": f"Sorry, not {n}.", "rejected": f"Sure, {n} is this."} for n in range(4)]


def test_pairs_as_references_are_refused_with_the_way_out():
    embed = EmbedLayers("toy", [3], device="cpu")
    with pytest.raises(DataError, match="3 safe reference rows are preference pairs") as refused:
        ReferenceIndex.build(unsafe_rows(), [*safe_rows(2), *PAIRS[:3]], embed, **SAID)
    assert 'columns={"prompt": "prompt", "response": "chosen", "ignore": "rejected"}' in str(refused.value)
    columns = {"prompt": "prompt", "response": "chosen", "ignore": "rejected"}
    named = EmbedLayers("toy", [3], columns=columns, device="cpu")
    unsafe = [{"prompt": row["prompt"], "chosen": row["response"]} for row in unsafe_rows()]
    found = ReferenceIndex.build(unsafe, PAIRS, named, **SAID)
    plain = [{"prompt": row["prompt"], "response": row["chosen"]} for row in PAIRS]
    expected = ReferenceIndex.build(unsafe_rows(), plain, embed, **SAID)
    for side in (0, 1):
        np.testing.assert_allclose(found.vectors(3)[side], expected.vectors(3)[side], atol=1e-5)


def test_references_that_were_cut_are_counted(caplog):
    embed = EmbedLayers("toy", [3], max_length=64, too_long="cut", device="cpu")
    long = [row | {"response": "Sure, " + "and so on " * 40 + row["response"]} for row in unsafe_rows(3)]
    with caplog.at_level(logging.WARNING):
        index = ReferenceIndex.build([*long, *unsafe_rows(5)], safe_rows(4), embed, **SAID)
    assert index.summary()["truncated"] == 3 and index.facts["truncated"] == {"unsafe": 3, "safe": 0}
    assert "3 of 8 unsafe reference rows are too long and were cut" in [one.getMessage() for one in caplog.records]
    whole = EmbedLayers("toy", [3], max_length=64, device="cpu")
    assert ReferenceIndex.build(long, safe_rows(4), whole, **SAID).summary()["truncated"] == 0
