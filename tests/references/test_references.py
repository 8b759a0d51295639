"""Reference sets: refused when nothing can be told from them, the same after a round trip, never read unverified."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from safetensors.numpy import load_file
from stand_in import WIDTH, StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError
from hf_safefilter.references import ReferenceIndex, hub, references
from hf_safefilter.storage import artifacts

SAID = {"license": "mit", "source": "the tests"}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))


@pytest.fixture
def index(store):
    return ReferenceIndex.build(unsafe_rows(12), safe_rows(9), StandIn(), **SAID)


def build(unsafe, safe, **change):
    return ReferenceIndex.build(unsafe, safe, StandIn(**change), **SAID)


def test_what_was_built_is_there(index):
    assert index.layers == (2, "norm") and index.counts == {"unsafe": 12, "safe": 9}
    assert (index.license, index.source, index.embed["model"]) == ("mit", "the tests", "stand-in")
    expected = np.stack([vector_of(row["response"], "norm") for row in safe_rows(9)])
    np.testing.assert_array_equal(index.vectors("norm")[1], expected)
    np.testing.assert_allclose(np.linalg.norm(index.unit(2)[0], axis=1), 1, rtol=1e-6)
    first = index.rows("unsafe")[3]
    assert (first.side, first.position) == ("unsafe", 3)
    assert first.conversation == as_conversations(unsafe_rows())[3] and first.spans == 1
    assert first.row_id == row_id(first.conversation)
    assert index.summary() == SAID | {
        "digest": index.digest, "rows": index.rows_digest,
        "unsafe": 12, "safe": 9, "benign": 0, "truncated": 0, "model": "stand-in",
        "revision": "0" * 40,
        "layers": [2, "norm"],
    }  # fmt: skip


def test_rows_may_be_a_data_set_or_any_iterable(index):
    assert build(Dataset.from_list(unsafe_rows(12)), iter(safe_rows(9))) == index


def test_the_files_are_plain_and_verified(index, tmp_path):
    folder = index.save(tmp_path / "saved")
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "vectors.safetensors", "rows.parquet"} | {
        f"index_{layer}_{side}.faiss" for layer in (2, "norm") for side in ("unsafe", "safe")
    }
    tensors = load_file(folder / "vectors.safetensors")
    assert tensors["unsafe.2"].shape == (12, WIDTH) and tensors["safe.norm"].dtype == np.float32
    assert pq.read_schema(folder / "rows.parquet").names == [
        "row_id", "side", "position", "spans", "benign", "conversation",
    ]  # fmt: skip
    flat = faiss.read_index(str(folder / "index_2_safe.faiss"))
    assert (flat.ntotal, flat.d, flat.metric_type) == (9, WIDTH, faiss.METRIC_INNER_PRODUCT)
    assert json.loads((folder / "manifest.json").read_text())["facts"]["license"] == "mit"


def test_the_digest_says_what_is_in_it(index, tmp_path):
    assert build(unsafe_rows(12), safe_rows(9)).digest == index.digest
    assert build(unsafe_rows(11), safe_rows(9)).digest != index.digest
    assert ReferenceIndex.build(unsafe_rows(12), safe_rows(9), StandIn(), license="mit", source="x") != index
    again = ReferenceIndex.load(index.save(tmp_path / "saved"))
    assert again == index and references(index.digest) == index
    assert len(pickle.dumps(index)) < 200 and pickle.loads(pickle.dumps(index)) == index  # noqa: S301 - our own bytes


def test_another_process_finds_it_by_digest(index):
    code = "import sys; from hf_safefilter.references import references; print(references(sys.argv[1]).counts)"
    found = subprocess.run([sys.executable, "-c", code, index.digest], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "{'unsafe': 12, 'safe': 9}"


def test_search_is_a_brute_force_search(index):
    queries = np.random.default_rng(0).normal(size=(700, WIDTH)).astype(np.float16)
    queries[5], queries[6], queries[7, 3] = 0, np.nan, np.inf
    found = index.search(queries, 2, 4, side="safe")
    assert found.similarity.dtype == np.float32 and found.similarity.shape == found.row_id.shape == (700, 4)
    exact = queries.astype(np.float64)
    bad = [5, 6, 7]
    with np.errstate(all="ignore"):
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    cosines = exact @ index.unit(2)[1].astype(np.float64).T
    for row in set(range(700)) - set(bad):
        order = np.argsort(-cosines[row])[:4]
        assert found.position[row].tolist() == order.tolist()
        np.testing.assert_allclose(found.similarity[row], cosines[row, order], atol=1e-6)
        assert [one.position for one in found.rows[row]] == order.tolist() if row < 20 else True
    assert np.isnan(found.similarity[bad]).all() and (found.row_id[bad] == "").all()
    assert index.search(queries[:8], 2, 2).rows[6] == []
    assert index.search(queries[0], 2, 1).row_id.shape == (1, 1)


def test_search_refuses_what_makes_no_sense(index):
    query = np.ones((1, WIDTH))
    with pytest.raises(OptionError, match=r"`k=10` does not fit 9 safe references"):
        index.search(query, 2, 10, side="safe")
    with pytest.raises(OptionError, match="'unsafe' or 'safe'"):
        index.search(query, 2, 1, side="both")
    with pytest.raises(MissingError, match=r"no layer 7[\s\S]*2, norm"):
        index.search(query, 7, 1)
    with pytest.raises(DataError, match="length 3 .* 16"):
        index.search(np.ones((1, 3)), 2, 1)


def test_rows_of_the_data_set_among_the_references_are_reported(index):
    ours = [row.row_id for row in index.rows("unsafe")]
    assert index.overlap(["x", ours[4], "y", ours[1], ours[4]]) == [ours[4], ours[1]]
    assert index.overlap([]) == []


@pytest.mark.parametrize(("unsafe", "safe", "message"), [
    ([], safe_rows(), "no unsafe reference rows"),
    (unsafe_rows(), [], "no safe reference rows"),
    (unsafe_rows(), unsafe_rows(), "the same rows"),
    (unsafe_rows(), unsafe_rows()[::-1], "the same rows"),
    (unsafe_rows(), safe_rows() + unsafe_rows()[2:4], r"2 rows are on both sides[\s\S]*unsafe row 2; unsafe row 3"),
    (unsafe_rows(1) * 3, safe_rows(), "all 3 unsafe reference rows are the same row"),
    (unsafe_rows(), safe_rows(1) * 2, "all 2 safe reference rows are the same row"),
    (unsafe_rows(2) + [{"prompt": "p", "response": ""}], safe_rows(), r"1 of 3 unsafe[\s\S]*row 2: empty_response"),
])  # fmt: skip
def test_sets_that_nothing_can_be_told_from_are_refused(unsafe, safe, message):
    with pytest.raises(DataError, match=message) as error:
        build(unsafe, safe)
    assert "hf-safefilter reference audit" in error.value.fix or "correct or remove" in error.value.fix


def test_one_row_a_side_is_enough():
    assert build(unsafe_rows(1), safe_rows(1)).counts == {"unsafe": 1, "safe": 1}


@pytest.mark.parametrize("bad", [0, np.nan, np.inf])
def test_vectors_that_mean_nothing_are_named(bad):
    def spoil(vectors):
        vectors = vectors.copy()
        vectors[4] = bad
        return vectors

    with pytest.raises(DataError, match=r"1 of 12 unsafe[\s\S]*row 4: zero or not finite at layer 2"):
        build(unsafe_rows(), safe_rows(), change=spoil)


def test_a_layer_where_both_sides_point_the_same_way_is_refused():
    with pytest.raises(DataError, match=r"at layer 2 .* same way"):
        build(unsafe_rows(), safe_rows(5), change=lambda vectors: np.ones_like(vectors))
    with pytest.raises(DataError, match=r"at layer 2 .* same way"):  # two means that agree, though no row does
        build(unsafe_rows(2), safe_rows(2), change=lambda vectors: np.eye(2, WIDTH, dtype=np.float32) * 3)


@pytest.mark.parametrize("left_out", ["license", "source"])
@pytest.mark.parametrize("value", ["", "  ", None])
def test_licence_and_source_are_required(left_out, value):
    with pytest.raises(OptionError, match=f"references need a {left_out}"):
        ReferenceIndex.build(unsafe_rows(), safe_rows(), StandIn(), **(SAID | {left_out: value}))


@pytest.mark.parametrize("name", ["vectors.safetensors", "rows.parquet", "index_2_unsafe.faiss", "manifest.json"])
def test_an_altered_file_is_refused(index, tmp_path, name):
    folder = index.save(tmp_path / "saved")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises((IntegrityError, MissingError)):
        found = ReferenceIndex.load(folder)
        assert found.digest == index.digest  # a changed manifest must not pass for the old one
        raise AssertionError("altered bytes were accepted")


def test_an_altered_manifest_is_another_artefact(index, tmp_path):
    folder = index.save(tmp_path / "saved")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"mit"', '"gpl"'))
    assert ReferenceIndex.load(folder).digest != index.digest


def test_the_store_is_not_trusted_either(index):
    home = artifacts.find("references", index.digest)
    fresh = ReferenceIndex(index.digest)
    (home / "vectors.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="vectors"):
        fresh.vectors(2)
    with pytest.raises(IntegrityError, match="vectors"):
        ReferenceIndex(index.digest)
    with pytest.raises(IntegrityError, match="not the file"):
        fresh.bytes_of("../elsewhere")


def test_an_artefact_under_another_name_is_refused():
    index = build(unsafe_rows(7), safe_rows(6))  # of its own: an open artefact is used by the tests after this one
    other = artifacts.find("references", build(unsafe_rows(5), safe_rows(5)).digest)
    home = artifacts.find("references", index.digest)
    for path in other.iterdir():
        (home / path.name).write_bytes(path.read_bytes())
    with pytest.raises(IntegrityError, match="named after"):
        ReferenceIndex(index.digest)


@pytest.mark.parametrize("forge", ["other vectors", "other kind", "too long", "cut short", "nothing"])
def test_a_foreign_faiss_file_is_not_opened(index, forge):
    """A manifest can vouch for anything its maker wrote: the index must still be the flat one over these vectors."""
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(np.roll(index.unit(2)[0], 1, axis=0))
    other = faiss.IndexFlatL2(WIDTH)
    other.add(index.unit(2)[0])
    honest = index.bytes_of("index_2_unsafe.faiss")
    content = {
        "other vectors": faiss.serialize_index(flat).tobytes(),
        "other kind": faiss.serialize_index(other).tobytes(),
        "too long": honest + b"\0" * 64,
        "cut short": honest[:-8],
        "nothing": b"",
    }[forge]
    files = {name: index.bytes_of(name) for name in index.files if name != "manifest.json"}
    forged = ReferenceIndex.make(dict(index.facts), files | {"index_2_unsafe.faiss": content})
    with pytest.raises(IntegrityError, match="not a flat index over the reference vectors"):
        forged.index(2, "unsafe")


def test_saving_never_replaces_what_is_not_ours(index, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OptionError, match="something else"):
        index.save(tmp_path / "mine")
    saved = index.save(tmp_path / "refs")
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="something else"):
        index.save(saved)
    (saved / "notes.txt").unlink()
    assert ReferenceIndex.load(build(unsafe_rows(5), safe_rows(5)).save(saved)).counts["unsafe"] == 5


def test_missing_references_say_how_to_get_them():
    with pytest.raises(MissingError, match="ReferenceIndex.load"):
        references("sha256:" + "0" * 64)
    with pytest.raises(IntegrityError, match="not a digest"):
        references("../../etc")


def test_the_card_holds_no_text_of_the_rows(index):
    card = hub.card(index.summary(), "me/refs")
    assert card.startswith("---\nlicense: mit\n") and index.digest in card and "Do harm" not in card
    tricky = ReferenceIndex.build(
        unsafe_rows(), safe_rows(), StandIn(), license="mit", source="a `b`\n---\n# <script>alert(1)</script>"
    )
    body = hub.card(tricky.summary(), "me/refs").split("---\n", 2)[2]
    assert "- source: `a 'b' --- # <script>alert(1)</script>`\n" in body  # inert: within one code span


def test_the_store_is_where_it_was_told(index, tmp_path):
    assert Path(artifacts.find("references", index.digest)).is_relative_to(tmp_path / "store")
