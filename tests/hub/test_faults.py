"""What the clients do when the Hub fails, and that a repository is then as it was before or complete."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from .server import Hub
from .test_loopback import bytes_of, rows

ID = "loopback/rows"
CONTENT = {"README.md": b"---\nlicense: mit\n---\n", "data/a.parquet": bytes_of(200_000), "data/b.bin": bytes_of(99, 1)}

STAGES = {
    "validate": ("POST", "validate-yaml$"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "objects/batch$"),
    "put": ("PUT", "^/lfs/"),
    "verify": ("POST", "^/lfs/.*verify$"),
    "commit": ("POST", "/commit/"),
}
REPEATED = ("preupload", "batch", "put", "verify")
"""The stages that huggingface_hub repeats by itself, after 408, 429, 5xx and lost connections."""


@pytest.fixture
def repo(hub: Hub):
    """A repository with one file in it, which `publish` replaces by others."""
    HfApi().create_repo(ID, repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="old.txt", repo_id=ID, repo_type="dataset")
    hub.log.clear()
    return hub.repo(ID)


def publish(hub: Hub, parent: str | None = None) -> None:
    additions = [CommitOperationAdd(path, content) for path, content in CONTENT.items()]
    HfApi().create_commit(
        ID,
        [*additions, CommitOperationDelete("old.txt")],
        commit_message="publish",
        repo_type="dataset",
        parent_commit=parent or hub.repo(ID).head(),
    )


def download(api: HfApi, revision: str | None = None) -> str:
    return api.hf_hub_download(ID, "old.txt", repo_type="dataset", revision=revision)


def state(repo) -> str:
    """Which of the two states the repository may be in it is in; anything else is neither."""
    files = {path: text for path, text in repo.files().items() if path != ".gitattributes"}
    return "before" if files == {"old.txt": b"old"} else "complete" if files == CONTENT else "torn"


def root(error: BaseException | None) -> BaseException:
    """The failure itself, below what it was wrapped in."""
    while error.__cause__ is not None and not isinstance(error, (HfHubHTTPError, httpx2.TransportError)):
        error = error.__cause__
    return error


FAULTS: dict[str, Callable[[Hub, str], None]] = {
    "409": lambda hub, stage: hub.fail(*STAGES[stage], 409),
    "412": lambda hub, stage: hub.fail(*STAGES[stage], 412),
    "429": lambda hub, stage: hub.fail(*STAGES[stage], 429, headers={"Retry-After": "3"}),
    "503": lambda hub, stage: hub.fail(*STAGES[stage], 503),
    "cut": lambda hub, stage: hub.cut(*STAGES[stage], after_bytes=90),
    "lost": lambda hub, stage: hub.lose_reply(*STAGES[stage]),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", FAULTS)
def test_after_one_fault_the_repository_is_as_before_or_complete(hub: Hub, repo, waits, stage, fault):
    before = repo.head()
    FAULTS[fault](hub, stage)
    error = None
    try:
        publish(hub)
    except (HfHubHTTPError, httpx2.TransportError, RuntimeError) as raised:
        error = raised
    repeated = stage in REPEATED and fault not in ("409", "412")
    assert (error is None) == repeated, error
    assert waits == ([4.0] if fault == "429" else [1.0]) * repeated, (
        "Retry-After and one second more, or the first step"
    )
    landed = repeated or (stage, fault) == ("commit", "lost")
    assert state(repo) == ("complete" if landed else "before")
    assert (repo.head() == before) == (not landed)
    if error is not None:
        lost = fault in ("cut", "lost")
        assert isinstance(root(error), httpx2.TransportError if lost else HfHubHTTPError)
        assert lost or root(error).response.status_code == int(fault)
        assert isinstance(error, RuntimeError) == (stage in ("put", "verify")), "uploads wrap what went wrong"


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_hub_that_stays_down_is_given_up_and_a_later_push_resumes(hub: Hub, repo, waits, fault):
    if fault == "503":
        hub.fail("PUT", "^/lfs/", 503, times=12)
    else:
        hub.cut("PUT", "^/lfs/", after_bytes=50, times=12)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        publish(hub)
    assert len(hub.requests("PUT", "^/lfs/")) == 12, "six attempts for each of two files"
    assert state(repo) == "before" and not repo.lfs
    assert sorted(waits) == [1, 1, 2, 2, 4, 4, 8, 8, 8, 8]
    publish(hub)
    assert state(repo) == "complete"


def test_what_was_uploaded_before_a_fault_is_not_uploaded_again(hub: Hub, repo, waits):
    hub.fail("POST", "/commit/", 503)
    with pytest.raises(HfHubHTTPError):
        publish(hub)
    uploaded = len(hub.requests("PUT", "^/lfs/"))
    publish(hub)
    assert len(hub.requests("PUT", "^/lfs/")) == uploaded == 2
    assert state(repo) == "complete"


def test_a_cut_in_the_middle_of_a_large_body_stores_nothing_of_it(hub: Hub, repo, waits):
    large = hashlib.sha256(CONTENT["data/a.parquet"]).hexdigest()
    hub.cut("PUT", large, after_bytes=100_000)
    publish(hub)
    cut, whole = (len(one.body) for one in hub.requests("PUT", large))
    assert 100_000 <= cut < 200_000 == whole
    assert sorted(map(len, repo.lfs.values())) == [99, 200_000]
    assert state(repo) == "complete"


def test_somebody_elses_commit_in_between_is_kept(hub: Hub, repo):
    hub.race(ID, {"theirs.txt": b"theirs"})
    with pytest.raises(HfHubHTTPError) as refused:
        publish(hub)
    assert refused.value.response.status_code == 412
    assert [one.title for one in repo.history()][0] == "Somebody else was here"
    assert set(repo.files()) == {".gitattributes", "old.txt", "theirs.txt"}
    publish(hub)
    assert repo.files()["theirs.txt"] == b"theirs" and "old.txt" not in repo.files()


def test_without_a_parent_a_commit_lands_on_top_of_a_racing_one(hub: Hub, repo):
    hub.race(ID, {"README.md": b"theirs", "theirs.txt": b"theirs"})
    HfApi().create_commit(ID, [CommitOperationAdd("README.md", b"ours")], commit_message="m", repo_type="dataset")
    assert repo.files()["README.md"] == b"ours", "their card is gone: this is why pushes name a parent"
    assert repo.files()["theirs.txt"] == b"theirs"


def test_operations_must_be_made_anew_for_a_second_attempt(hub: Hub, repo):
    """An operation remembers what the Hub had when it was first sent, and is dropped when that is what it holds."""
    operations = [CommitOperationAdd("old.txt", b"old"), CommitOperationAdd("new.txt", b"new")]
    hub.race(ID, {"old.txt": b"theirs"})
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().create_commit(ID, operations, commit_message="m", repo_type="dataset", parent_commit=repo.head())
    HfApi().create_commit(ID, operations, commit_message="m", repo_type="dataset", parent_commit=repo.head())
    assert repo.files()["old.txt"] == b"theirs", "reused, the first operation was silently left out"
    fresh = [CommitOperationAdd("old.txt", b"old")]
    HfApi().create_commit(ID, fresh, commit_message="m", repo_type="dataset", parent_commit=repo.head())
    assert repo.files()["old.txt"] == b"old"


def test_a_commit_of_nothing_new_is_not_sent_so_its_parent_is_not_looked_at(hub: Hub, repo):
    stale = repo.history()[-1].id
    made = HfApi().create_commit(
        ID, [CommitOperationAdd("old.txt", b"old")], commit_message="m", repo_type="dataset", parent_commit=stale
    )
    assert made.oid == repo.head() and not hub.requests("POST", "/commit/")


def test_a_commit_whose_answer_was_lost_is_found_at_the_head(hub: Hub, repo):
    hub.lose_reply("POST", "/commit/")
    before = repo.head()
    with pytest.raises(httpx2.TransportError):
        publish(hub, before)
    with pytest.raises(HfHubHTTPError, match="412"):  # the head has moved, by this very commit
        publish(hub, before)
    newest = HfApi().list_repo_commits(ID, repo_type="dataset")[0]
    assert newest.title == "publish" and repo.commits[newest.commit_id].parent == before


@pytest.mark.parametrize("status", [409, 412, 429, 503])
def test_datasets_gives_up_on_a_commit_that_it_means_to_repeat(hub: Hub, repo, waits, status):
    """Its test for a repeatable failure looks for a type that the client no longer raises, so callers must repeat."""
    before = repo.refs.copy()
    hub.fail("POST", "/commit/", status)
    with pytest.raises(HfHubHTTPError) as refused:
        rows(10).push_to_hub(ID)
    assert refused.value.response.status_code == status and repo.refs == before
    rows(10).push_to_hub(ID)
    assert set(repo.files()) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet", "old.txt"}


def test_a_gateway_that_does_not_speak_json_fails_the_card_check_with_an_error_of_its_own(hub: Hub, repo):
    hub.fail("POST", "validate-yaml$", 503, body=b"<html>Service Unavailable</html>")
    with pytest.raises(json.JSONDecodeError):
        publish(hub)
    assert state(repo) == "before"
    publish(hub)


def test_a_hub_that_is_down_for_a_moment_gives_an_old_file_unless_the_commit_is_named(hub: Hub, repo):
    assert Path(download(HfApi())).read_text() == "old"
    made = HfApi().upload_file(path_or_fileobj=b"new", path_in_repo="old.txt", repo_id=ID, repo_type="dataset")
    hub.fail("HEAD", "/resolve/main/", 503)
    assert Path(download(HfApi())).read_text() == "old", "from the cache, and no error"
    hub.fail("HEAD", f"/resolve/{made.oid}/", 503)
    assert Path(download(HfApi(), revision=made.oid)).read_text() == "new"


CALLS = {
    "create": ("POST", "repos/create$", lambda api: api.create_repo("loopback/new", repo_type="dataset")),
    "branch": ("POST", "/branch/", lambda api: api.create_branch(ID, branch="draft", repo_type="dataset")),
    "info": ("GET", f"/api/datasets/{ID}$", lambda api: api.dataset_info(ID)),
    "tree": ("GET", "/tree/", lambda api: list(api.list_repo_tree(ID, repo_type="dataset"))),
    "commits": ("GET", "/commits/", lambda api: api.list_repo_commits(ID, repo_type="dataset")),
    "head": ("HEAD", "/resolve/", download),
    "get": ("GET", "/resolve/", download),
}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("name", CALLS)
def test_which_other_calls_are_repeated(hub: Hub, repo, waits, tmp_path, monkeypatch, name, status):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # else the file is there from another test
    method, path, call = CALLS[name]
    hub.fail(method, path, status)
    repeated = name in ("tree", "commits", "head") or (name, status) == ("get", 429)
    if repeated:
        call(HfApi())
    else:
        with pytest.raises(HfHubHTTPError, match=str(status)):
            call(HfApi())
        call(HfApi())
    paused = repeated and name != "head"  # which is asked again at once where there is no cached file to fall back on
    assert waits == [1.0] * paused
