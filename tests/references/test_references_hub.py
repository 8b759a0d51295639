"""References over real HTTP: one commit out, and a verified copy in."""

import json

import pytest
from huggingface_hub import HfApi
from stand_in import StandIn, safe_rows, unsafe_rows

from hf_safefilter.errors import IntegrityError, MissingError, PublishError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references import hub as hub_of_references

ID = "loopback/references"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))


def build(count=6, layers=(2, "norm")):
    return ReferenceIndex.build(unsafe_rows(count), safe_rows(count), StandIn(layers), license="mit", source="tests")


def files_of(hub, revision="main"):
    return {name: text for name, text in hub.repo(ID).files(revision).items() if name != ".gitattributes"}


def put(content: dict[str, bytes]) -> None:
    for name, text in content.items():
        HfApi().upload_file(path_or_fileobj=text, path_in_repo=name, repo_id=ID, repo_type="dataset")


def test_one_commit_out_and_the_same_references_in(hub, tmp_path, monkeypatch):
    index = build()
    pushed = index.push(ID)
    assert hub.repo(ID).private and len(hub.requests("POST", "/commit/")) == 1
    assert set(files_of(hub)) == {*index.files, "README.md"}
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another store"))
    again = ReferenceIndex.from_hub(ID, pushed.oid)
    assert again == index and again.rows("safe") == index.rows("safe")


def test_a_second_push_leaves_nothing_of_the_first_and_the_first_can_be_had(hub):
    whole = build()
    first = whole.push(ID).oid
    fewer = build(7, layers=[2])
    fewer.push(ID)
    assert set(files_of(hub)) == {*fewer.files, "README.md"}
    assert fewer.digest in files_of(hub)["README.md"].decode()
    assert ReferenceIndex.from_hub(ID) == fewer
    assert ReferenceIndex.from_hub(ID, first) == whole


def test_a_card_and_files_of_a_persons_own_are_left_alone(hub):
    HfApi().create_repo(ID, repo_type="dataset", private=True)
    put({"README.md": b"# My own words", "notes.txt": b"kept"})
    build().push(ID)
    assert files_of(hub)["README.md"] == b"# My own words" and files_of(hub)["notes.txt"] == b"kept"


def test_private_texts_are_not_pushed_to_a_public_repository(hub):
    HfApi().create_repo(ID, repo_type="dataset", private=False)
    with pytest.raises(PublishError, match="is public"):
        build().push(ID)
    assert not files_of(hub)
    build().push(ID, private=False)
    assert files_of(hub)


def push(index, slept):
    return hub_of_references.push(index, index.summary(), ID, private=True, token=None, sleep=slept.append)


@pytest.mark.parametrize("status", [409, 412, 503])
def test_a_commit_that_is_refused_for_a_while_is_made_again(hub, waits, status):
    build().push(ID)
    hub.fail("POST", "/commit/", status, times=2)
    slept = []
    push(build(7), slept)
    assert len(slept) == 2 and ReferenceIndex.from_hub(ID) == build(7)


@pytest.mark.parametrize(("status", "times"), [(412, 6), (400, 1)])
def test_a_refused_commit_changes_nothing(hub, waits, status, times):
    build().push(ID)
    before = hub.repo(ID).head()
    hub.fail("POST", "/commit/", status, times=times)
    with pytest.raises(PublishError, match=rf"commit to {ID}[\s\S]*{status}"):
        push(build(7), [])
    assert hub.repo(ID).head() == before
    build(7).push(ID)
    assert ReferenceIndex.from_hub(ID) == build(7)


def test_an_altered_or_foreign_repository_is_refused(hub):
    HfApi().create_repo(ID, repo_type="dataset", private=True)
    with pytest.raises(MissingError, match="holds no references"):
        ReferenceIndex.from_hub(ID)
    index = build()
    index.push(ID)
    put({"rows.parquet": b"x"})
    with pytest.raises(IntegrityError, match="not the file"):
        ReferenceIndex.from_hub(ID)
    manifest = json.loads(index.bytes_of("manifest.json"))
    manifest["files"] = {"../../escape": "0" * 64}
    put({"manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(IntegrityError, match="outside its folder"):
        ReferenceIndex.from_hub(ID)
