"""The clients that users have, against the loopback Hub: what is pushed is what is loaded."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value, config, load_dataset
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from processes import HANG
from small_models import save_small_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from .server import Hub

ID = "loopback/rows"
FEATURES = Features({"text": Value("string"), "vector": List(Value("float16"), length=8), "score": Value("float32")})


def rows(count: int, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 8)).astype(np.float16)
    columns = {"text": [f"row {n} of {seed}" for n in range(count)], "vector": vectors, "score": rng.random(count)}
    return Dataset.from_dict(columns, features=FEATURES)


def same(left: Dataset, right: Dataset) -> bool:
    """Equal schema and equal cells, bit for bit."""
    tables = [one.with_format("arrow")[:] for one in (left, right)]
    return left.features == right.features and tables[0].equals(tables[1])


def bytes_of(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def test_who_is_asking(hub: Hub):
    assert HfApi().whoami()["name"] == hub.user
    with pytest.raises(HfHubHTTPError, match="[Ii]nvalid"):
        HfApi().whoami(token="hf_nobody")
    assert HfApi().whoami(token=hub.add_user("guest"))["name"] == "guest"


def test_a_repository_is_made_once_and_goes_when_told(hub: Hub):
    api = HfApi()
    assert api.create_repo(ID, repo_type="dataset", private=True).repo_id == ID
    assert hub.repo(ID).private
    assert api.create_repo(ID, repo_type="dataset", exist_ok=True).repo_id == ID
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(ID, repo_type="dataset")
    assert refused.value.response.status_code == 409
    assert not api.repo_exists(ID), "a dataset is not a model"
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("someone-else/rows", repo_type="dataset")
    api.delete_repo(ID, repo_type="dataset")
    assert not api.repo_exists(ID, repo_type="dataset")


def test_a_dataset_comes_back_as_it_was_pushed(hub: Hub):
    pushed = DatasetDict({"train": rows(50), "test": rows(20, seed=1)})
    pushed.push_to_hub(ID, private=True)
    loaded = load_dataset(ID)
    assert set(loaded) == {"train", "test"}
    assert all(same(loaded[split], pushed[split]) for split in pushed)
    streamed = load_dataset(ID, split="test", streaming=True)
    assert streamed.features == FEATURES
    assert [row["text"] for row in streamed] == pushed["test"]["text"][:]
    assert [row["vector"] for row in streamed] == pushed["test"]["vector"][:]


def test_a_push_over_a_push_leaves_no_old_shards(hub: Hub):
    rows(60).push_to_hub(ID, num_shards=3)
    first = hub.repo(ID).head()
    rows(10, seed=2).push_to_hub(ID)
    data = [path for path in hub.repo(ID).files() if path.endswith(".parquet")]
    assert data == ["data/train-00000-of-00001.parquet"]
    assert same(load_dataset(ID, split="train"), rows(10, seed=2))
    assert same(load_dataset(ID, split="train", revision=first), rows(60))


def test_a_card_keeps_what_is_written_on_it(hub: Hub):
    rows(5).push_to_hub(ID)
    card = DatasetCard.load(ID)
    card.data.license, card.text = "apache-2.0", "# Rows\n\nWritten by hand.\n"
    card.data["safefilter"] = {"threshold": 0.25}
    card.push_to_hub(ID)
    rows(7).push_to_hub(ID)
    again = DatasetCard.load(ID)
    assert "Written by hand." in again.text
    assert again.data.license == "apache-2.0" and again.data["safefilter"] == {"threshold": 0.25}
    assert again.data.dataset_info["splits"][0]["num_examples"] == 7
    assert HfApi().dataset_info(ID).card_data.license == "apache-2.0"


def test_a_card_that_is_not_yaml_is_refused_before_anything_is_uploaded(hub: Hub):
    HfApi().create_repo(ID, repo_type="dataset")
    before = hub.repo(ID).refs.copy()
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        HfApi().upload_file(
            path_or_fileobj=b"---\nlicense: [\n---\n", path_in_repo="README.md", repo_id=ID, repo_type="dataset"
        )
    assert hub.repo(ID).refs == before
    assert not hub.requests("POST", "preupload|/commit/")


def test_one_commit_adds_replaces_and_removes(hub: Hub):
    api = HfApi()
    api.create_repo(ID, repo_type="dataset")
    binary = bytes_of(300_000)
    add = [CommitOperationAdd("old/a.txt", b"a"), CommitOperationAdd("old/b.txt", b"b"), CommitOperationAdd("c", b"1")]
    first = api.create_commit(ID, add, commit_message="first", repo_type="dataset")
    change = [
        CommitOperationAdd("data/x.bin", binary),
        CommitOperationAdd("c", b"2"),
        CommitOperationDelete("old/", is_folder=True),
    ]
    second = api.create_commit(ID, change, commit_message="second", repo_type="dataset", parent_commit=first.oid)
    repo = hub.repo(ID)
    assert repo.head() == second.oid
    assert {path: text for path, text in repo.files().items() if path != ".gitattributes"} == {
        "data/x.bin": binary,
        "c": b"2",
    }
    assert repo.at(second.oid).files["data/x.bin"].lfs and not repo.at(second.oid).files["c"].lfs
    assert repo.files(first.oid)["c"] == b"1", "a commit never changes"
    assert [one.title for one in api.list_repo_commits(ID, repo_type="dataset")] == [
        "second",
        "first",
        "initial commit",
    ]


def test_commits_made_at_once_all_land(hub: Hub):
    HfApi().create_repo(ID, repo_type="dataset")

    def upload(n: int) -> str:
        name = f"{n}.txt"
        return HfApi().upload_file(path_or_fileobj=b"1", path_in_repo=name, repo_id=ID, repo_type="dataset").oid

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(upload, range(16)))
    assert set(hub.repo(ID).files()) == {".gitattributes"} | {f"{n}.txt" for n in range(16)}
    assert len(hub.repo(ID).history()) == 17 and len(set(made)) == 16


def test_a_stale_parent_is_refused(hub: Hub):
    api = HfApi()
    api.create_repo(ID, repo_type="dataset")
    stale = hub.repo(ID).head()
    api.create_commit(ID, [CommitOperationAdd("a", b"1")], commit_message="in between", repo_type="dataset")
    head = hub.repo(ID).head()
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(
            ID, [CommitOperationAdd("b", b"2")], commit_message="late", repo_type="dataset", parent_commit=stale
        )
    assert refused.value.response.status_code == 412
    assert hub.repo(ID).head() == head


def test_files_are_listed_found_and_downloaded_at_a_revision(hub: Hub):
    api = HfApi()
    api.create_repo(ID, repo_type="dataset")
    first = api.create_commit(
        ID,
        [CommitOperationAdd("a/b.txt", b"one"), CommitOperationAdd("m.bin", bytes_of(9000))],
        commit_message="1",
        repo_type="dataset",
    )
    api.create_tag(ID, tag="v1", repo_type="dataset")
    api.create_branch(ID, branch="draft", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"two", path_in_repo="a/b.txt", repo_id=ID, repo_type="dataset", revision="draft")
    assert api.list_repo_files(ID, repo_type="dataset") == [".gitattributes", "a/b.txt", "m.bin"]
    assert api.resolve_revision(ID, repo_type="dataset", revision="v1").resolved == first.oid
    refs = api.list_repo_refs(ID, repo_type="dataset")
    assert [ref.name for ref in refs.branches] == ["main", "draft"]
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first.oid)]
    for revision, text in (("v1", "one"), ("draft", "two"), (first.oid, "one"), (None, "one")):
        assert Path(hf_hub_download(ID, "a/b.txt", repo_type="dataset", revision=revision)).read_text() == text
    info = api.get_paths_info(ID, ["a", "m.bin", "absent"], repo_type="dataset", expand=True)
    assert [(one.path, one.last_commit.title) for one in info] == [("a", "1"), ("m.bin", "1")]
    assert info[1].lfs.size == 9000
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(ID, "absent", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(ID, "a/b.txt", repo_type="dataset", revision="v9")


def test_every_checksum_of_a_snapshot_is_that_of_the_hub(hub: Hub):
    rows(30).push_to_hub(ID)
    api = HfApi()
    folder = Path(api.snapshot_download(ID, repo_type="dataset"))
    verified = api.verify_repo_checksums(ID, repo_type="dataset")
    assert verified.checked_count == 3 and not (verified.mismatches or verified.missing_paths or verified.extra_paths)
    (folder / "README.md").write_text("tampered")
    assert [one["path"] for one in api.verify_repo_checksums(ID, repo_type="dataset").mismatches] == ["README.md"]


def test_a_part_of_a_file_can_be_read(hub: Hub):
    api = HfApi()
    api.create_repo(ID, repo_type="dataset")
    content = bytes_of(10_000)
    api.upload_file(path_or_fileobj=content, path_in_repo="x.bin", repo_id=ID, repo_type="dataset")
    url = f"{hub.url}/datasets/{ID}/resolve/main/x.bin"
    for wanted, expected in (("0-99", content[:100]), ("9990-", content[-10:]), ("-7", content[-7:])):
        reply = httpx2.get(url, headers={"Range": f"bytes={wanted}"})
        assert (reply.status_code, reply.content) == (206, expected)
    assert httpx2.get(url, headers={"Range": "bytes=10000-"}).status_code == 416


def test_a_model_comes_back_as_it_was_pushed(hub: Hub, tmp_path):
    folder = save_small_model(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.push_to_hub("loopback/tiny", private=True)
    tokenizer.push_to_hub("loopback/tiny")
    assert hub.repo("loopback/tiny", "models").private
    again = AutoModelForCausalLM.from_pretrained("loopback/tiny")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    text = "Name three flowers."
    assert AutoTokenizer.from_pretrained("loopback/tiny")(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("who", ["nobody", "guest"])
def test_a_private_repository_is_not_there_for_others(hub: Hub, who, tmp_path):
    rows(5).push_to_hub(ID, private=True)
    token = False if who == "nobody" else hub.add_user("guest")
    for ask in (
        lambda: HfApi().dataset_info(ID, token=token),
        lambda: hf_hub_download(ID, "README.md", repo_type="dataset", token=token, cache_dir=tmp_path),
        lambda: HfApi(token=token).upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=ID, repo_type="dataset"),
    ):
        with pytest.raises(RepositoryNotFoundError) as refused:
            ask()
        assert refused.value.response.status_code == (404 if token else 401)
    assert len(hub.repo(ID).history()) == 2


def test_a_public_repository_is_read_by_all_and_written_by_its_owner(hub: Hub):
    rows(5).push_to_hub(ID)
    assert HfApi().dataset_info(ID, token=False).sha == hub.repo(ID).head()
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token=hub.add_user("guest")).upload_file(
            path_or_fileobj=b"1", path_in_repo="a", repo_id=ID, repo_type="dataset"
        )


def test_a_process_started_by_a_test_talks_to_the_same_hub(hub: Hub):
    HfApi().create_repo(ID, repo_type="dataset")
    code = f"from huggingface_hub import HfApi; print(HfApi().endpoint, HfApi().dataset_info({ID!r}).sha)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=True)
    assert found.stdout.split() == [hub.url, hub.repo(ID).head()]


def test_nothing_of_the_users_own_is_read_or_written(hub: Hub):
    home = os.environ["HF_HOME"]
    for place in (constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH, config.HF_DATASETS_CACHE):
        assert str(place).startswith(home)
    assert get_token() == hub.token


def run(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=HANG)


def test_a_client_that_was_imported_first_is_not_let_through():
    assert (
        "huggingface_hub imported before" in run("import huggingface_hub; from hub import early; early.start()").stderr
    )


def test_a_hub_of_its_own_for_each_process_and_nothing_left_behind(hub: Hub):
    found = run("import os; from hub import early; print(early.start().url, os.environ['HF_HOME'])").stdout.split()
    assert found[0] != hub.url and found[1] != os.environ["HF_HOME"]
    assert not Path(found[1]).exists()
