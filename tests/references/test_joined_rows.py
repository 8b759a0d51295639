"""Rows that a person has judged join the references as if these had been built with them."""

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.references.joined_rows import base_of, with_rows
from hf_safefilter.storage import fitted
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

LAYERS = (3, 5)


@pytest.fixture(scope="module")
def embed():
    return EmbedLayers("toy", LAYERS, position="mean,last_prompt")


@pytest.fixture(scope="module")
def index(embed):
    return ReferenceIndex.build(*reference_rows(12, 3), embed, license="mit", source="a test")


@pytest.fixture(scope="module")
def rows():
    return mixed_rows(30, 0.5, 9)


@pytest.fixture(scope="module")
def embedded(rows, embed):
    return Dataset.from_list(rows).map(embed, batched=True)


def joined(index, unsafe, benign):
    return with_rows(index, unsafe, benign, mapping=None, data_set=("my rows", "1"))


def test_it_is_the_set_that_would_have_been_built(index, rows, embedded, embed):
    found = joined(index, embedded.select(range(4)), embedded.select(range(4, 9)))
    unsafe, safe = reference_rows(12, 3)
    built = ReferenceIndex.build(
        [*unsafe, *rows[:4]], safe, embed, benign=rows[4:9], license="mit", source="a test"
    )  # fmt: skip
    assert found.counts == built.counts and found.benign == built.benign == 5 and found.layers == built.layers
    for side in ("unsafe", "safe"):
        assert found.rows(side) == built.rows(side)
        for layer in built.layers:
            at = ("unsafe", "safe").index(side)
            np.testing.assert_allclose(found.vectors(layer)[at], built.vectors(layer)[at], rtol=2e-3, atol=2e-3)
        vectors = embedded.select([20]).with_format("numpy")["emb_layer_5"][0]
        names = [one.search(vectors, 5, 3, side).row_id.tolist() for one in (found, built)]
        assert names[0] == names[1]
    assert found.digest != index.digest and base_of(found, ("my rows", "1")) == index == base_of(
        index, ("my rows", "1")
    )
    assert found.source == "a test; 9 rows of my rows, chosen by people" and "their own" in found.license


def test_rows_that_are_references_already_and_copies_join_once(index, rows, embedded):
    twice = joined(index, embedded.select([0, 1, 0]), embedded.select([]))
    assert twice.counts == {"unsafe": index.counts["unsafe"] + 2, "safe": index.counts["safe"]}
    again = joined(twice, embedded.select([1, 2]), embedded.select([]))
    assert again.counts["unsafe"] == twice.counts["unsafe"] + 1
    assert joined(twice, embedded.select([0, 1]), embedded.select([])) is twice
    with pytest.raises(DataError, match="stand among the unsafe ones"):
        joined(twice, embedded.select([]), embedded.select([1]))


def test_a_row_of_several_answers_and_one_that_was_not_read_are_refused(index, embed):
    turns = [("user", "a question"), ("assistant", "an answer")]
    rows = [
        {"messages": [{"role": role, "content": said} for role, said in turns * 2]},
        {"messages": [{"role": role, "content": said} for role, said in [turns[0], ("assistant", "")]]},
    ]
    embedded = Dataset.from_list(rows).map(embed, batched=True)
    for place, found in enumerate(("2 answers", "0 answers")):
        with pytest.raises(DataError, match=found):
            joined(index, embedded.select([place]), embedded.select([]))


def test_a_preference_pair_is_refused(index, embed):
    pair = {"prompt": "a question", "chosen": "an answer", "rejected": "another answer"}
    embedded = Dataset.from_list([pair]).map(embed, batched=True)
    with pytest.raises(DataError, match="preference pair"):
        joined(index, embedded.select([]), embedded)


def test_layers_that_the_rows_lack_are_left_out_and_without_any_it_is_an_error(index, embedded):
    some = joined(
        index, embedded.remove_columns(["emb_layer_3", "emb_layer_3_last_prompt"]).select([0]), embedded.select([])
    )
    assert some.layers == (5, "5_last_prompt")
    bare = embedded.remove_columns([name for name in embedded.column_names if name.startswith("emb_")])
    with pytest.raises(DataError, match="not read at a layer"):
        joined(index, bare.select([0]), bare.select([]))
    with pytest.raises(MissingError, match="truncated"):
        joined(index, embedded.remove_columns("truncated").select([0]), embedded.select([]))


def test_rows_of_another_data_set_stay_and_a_base_of_another_machine_is_not_needed(
    index, embedded, tmp_path, monkeypatch
):
    found = joined(index, embedded.select([0]), embedded.select([]))
    assert base_of(found, ("my rows", "2")) == found and base_of(found, ("others", "1")) == found
    saved = found.save(tmp_path / "refs")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
    fitted._open.cache_clear()
    there = ReferenceIndex.load(saved)
    assert base_of(there, ("my rows", "1")) == there
    fitted._open.cache_clear()


@pytest.mark.parametrize("base", ["other", "", None, 7])
def test_a_base_that_a_manifest_only_claims_is_not_believed(index, embed, base):
    """A set whose manifest names another set in this user's store, or nothing, as what rows have joined."""
    other = ReferenceIndex.build(*reference_rows(9, 8), embed, license="mit", source="another test")
    files = {name: index.bytes_of(name) for name in index.files if name != "manifest.json"}
    claimed = {"base": other.digest if base == "other" else base, "joined_from": ["my rows", "1"]}
    forged = ReferenceIndex.make(dict(index.facts) | claimed, files)
    assert base_of(forged, ("my rows", "1")) == forged
