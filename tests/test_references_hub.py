"""What one commit to the Hub holds, and what comes back from its cache of links."""

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from stand_in import StandIn, safe_rows, unsafe_rows

from hf_safefilter.errors import IntegrityError, MissingError, PublishError
from hf_safefilter.references import ReferenceIndex


class Repository:
    """The calls that `push` makes of `HfApi`, and the files that they leave."""

    def __init__(self, folder, private=True):
        self.folder, self.private, self.commits = folder, private, []
        folder.mkdir()

    def __call__(self, token=None):
        return self

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert (repo_type, exist_ok) == ("dataset", True)

    def repo_info(self, repo_id, *, repo_type):
        return SimpleNamespace(private=self.private, sha=f"{len(self.commits):040x}")

    def list_repo_files(self, repo_id, *, repo_type, revision):
        return [path.name for path in self.folder.iterdir()]

    def hf_hub_download(self, repo_id, name, *, repo_type, revision):
        return self.folder / name

    def create_commit(self, repo_id, operations, *, commit_message, repo_type, parent_commit):
        assert parent_commit == f"{len(self.commits):040x}"
        self.commits.append(operations)
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                (self.folder / operation.path_in_repo).unlink()
            else:
                assert isinstance(operation, CommitOperationAdd)
                (self.folder / operation.path_in_repo).write_bytes(operation.path_or_fileobj)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    found = Repository(tmp_path / "repository")
    monkeypatch.setattr("huggingface_hub.HfApi", found)

    def snapshot(repo_id, *, repo_type, revision, allow_patterns, token):
        cache = tmp_path / f"snapshot-{len(found.commits)}"
        cache.mkdir(exist_ok=True)
        for path in found.folder.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns) and not (cache / path.name).exists():
                (cache / path.name).symlink_to(path)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    return found


def build(count=6, layers=(2, "norm")):
    return ReferenceIndex.build(unsafe_rows(count), safe_rows(count), StandIn(layers), license="mit", source="tests")


def test_one_commit_out_and_the_same_references_in(repository, tmp_path, monkeypatch):
    index = build()
    index.push("me/refs")
    assert len(repository.commits) == 1
    assert {path.name for path in repository.folder.iterdir()} == {*index.files, "README.md"}
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another store"))
    assert ReferenceIndex.from_hub("me/refs") == index


def test_a_second_push_leaves_nothing_of_the_first(repository):
    build().push("me/refs")
    fewer = build(7, layers=[2])
    fewer.push("me/refs")
    assert {path.name for path in repository.folder.iterdir()} == {*fewer.files, "README.md"}
    assert fewer.digest in (repository.folder / "README.md").read_text()
    assert ReferenceIndex.from_hub("me/refs") == fewer


def test_a_card_that_a_person_wrote_is_left_alone(repository):
    (repository.folder / "README.md").write_text("# My own words")
    (repository.folder / "notes").write_text("kept")
    build().push("me/refs")
    assert (repository.folder / "README.md").read_text() == "# My own words"
    assert (repository.folder / "notes").exists()


def test_private_texts_are_not_pushed_to_a_public_repository(repository):
    repository.private = False
    with pytest.raises(PublishError, match="is public"):
        build().push("me/refs")
    assert not repository.commits
    build().push("me/refs", private=False)
    assert len(repository.commits) == 1


def test_an_altered_or_foreign_repository_is_refused(repository):
    with pytest.raises(MissingError, match="holds no references"):
        ReferenceIndex.from_hub("me/refs")
    build().push("me/refs")
    (repository.folder / "rows.parquet").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="not the file"):
        ReferenceIndex.from_hub("me/refs")
    manifest = repository.folder / "manifest.json"
    body = json.loads(manifest.read_text())
    body["files"] = {"../../escape": "0" * 64}
    manifest.write_text(json.dumps(body))
    with pytest.raises(IntegrityError, match="outside its folder"):
        ReferenceIndex.from_hub("me/refs")
