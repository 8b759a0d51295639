"""References from strangers: whatever is wrong with a set, a sentence says so before a row is compared with it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import IntegrityError, MissingError, SafefilterError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.open import open_references
from hf_safefilter.storage.artifacts import MANIFEST, file_sha256

ROWS = [{"prompt": f"How do I {what}?", "response": "Like this."} for what in ("sing", "dance", "bake")]
REFUSED = [{"prompt": row["prompt"], "response": "No, I will not."} for row in ROWS]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references") / "good"
    embed = EmbedLayers("toy", layers=[2])
    ReferenceIndex.build(ROWS, REFUSED, embed, license="mit", source="tests").save(folder)
    return folder


@pytest.fixture
def own(good, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    return shutil.copytree(good, tmp_path / "own")


def recorded(folder, **facts):
    """The manifest written anew for the files as they are, as an attacker would."""
    body = json.loads((folder / MANIFEST).read_text())
    body["files"] = {name: file_sha256(folder / name) for name in body["files"]}
    body["facts"] |= facts
    for name in [name for name, value in facts.items() if value is ...]:
        del body["facts"][name]
    (folder / MANIFEST).write_text(json.dumps(body, sort_keys=True, ensure_ascii=False, indent=1) + "\n")


def use(folder):
    index = ReferenceIndex.load(folder)
    index.summary()
    index.search(np.ones((1, index.vectors(2)[0].shape[1]), np.float32), 2, 1)


def test_a_set_as_it_was_written_is_used(own):
    recorded(own)
    use(own)


@pytest.mark.parametrize(
    "facts",
    [{"license": ...}, {"license": 3}, {"source": None}, {"counts": "x"}, {"counts": {"unsafe": 3}},
     {"layers": [{"a": 1}]}, {"layers": []}, {"layers": ["norm", 2]}, {"layers": 2},
     {"embed": None}, {"benign": "0"}, {"truncated": 3},
     {"counts": {"unsafe": 2, "safe": 3}}],
    ids=str,
)  # fmt: skip
def test_facts_that_are_none(own, facts):
    recorded(own, **facts)
    with pytest.raises(IntegrityError):
        use(own)


def change(own, alter):
    vectors = load_file(own / "vectors.safetensors")
    alter(vectors)
    save_file(vectors, own / "vectors.safetensors")
    recorded(own)


@pytest.mark.parametrize(
    "alter",
    [
        lambda vectors: vectors.pop("unsafe.2"),
        lambda vectors: vectors.update({"unsafe.2": vectors["unsafe.2"] * np.nan}),
        lambda vectors: vectors.update({"safe.2": vectors["safe.2"][:1]}),
        lambda vectors: vectors.update({"safe.2": vectors["safe.2"].ravel()}),
        lambda vectors: vectors.update({"safe.2": vectors["safe.2"].astype(np.int32)}),
    ],
)
def test_vectors_that_are_missing_or_of_another_form(own, alter):
    change(own, alter)
    with pytest.raises(IntegrityError, match="no sound (un)?safe vectors of layer 2"):
        use(own)


@pytest.mark.parametrize("name", ["rows.parquet", "vectors.safetensors", "index_2_unsafe.faiss"])
@pytest.mark.parametrize("content", [b"", b"PAR1junkPAR1", b"\xff" * 500])
def test_files_of_other_bytes(own, name, content):
    (own / name).write_bytes(content)
    with pytest.raises(SafefilterError):
        use(own)
    recorded(own)
    with pytest.raises(SafefilterError):
        use(own)


NOT_A_NUMBER = '{"kind": "references", "version": 2, "facts": {"x": NaN}, "files": {}}'


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "{", "null", NOT_A_NUMBER], ids=lambda text: text[:9])
def test_a_manifest_that_is_none(own, text):
    (own / MANIFEST).write_text(text)
    with pytest.raises(IntegrityError, match="is not a manifest"):
        use(own)


@pytest.mark.parametrize("name", ["none/such", "a file.txt", "x" * 5000, "a\x00b", "..", "a/b/c"])
def test_names_of_nothing(hub, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file.txt").write_text("")
    with pytest.raises(MissingError):
        open_references(name)
