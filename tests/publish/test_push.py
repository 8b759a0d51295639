"""Publishing against a real Hub protocol, with faults: afterwards the repository is as before, or complete."""

import io
import json
import shutil

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi

from hf_safefilter.decide.select import IsSafe, split
from hf_safefilter.errors import IntegrityError, MissingError, PublishError
from hf_safefilter.publish.drop_reasons import by_split
from hf_safefilter.publish.folder import PROVENANCE, write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.push import push_card, push_filtered, push_folder
from hf_safefilter.recipe import Recipe
from hf_safefilter.storage.recorded_files import record_files

from .conftest import SECRET

ID = "me/rows"
FACTS = {"license": "mit", "source": "a barn"}
FILES = {
    "README.md", "croissant.json", "data/train-00000-of-00001.parquet", "dropped.parquet", "provenance.json",
    "plots/scores.png", "plots/scores.svg", "plots/shares.png", "plots/shares.svg",
}  # fmt: skip
STAGES = {
    "preupload": ("POST", "/preupload/"),
    "put": ("PUT", "^/lfs/"),
    "commit": ("POST", "/commit/"),
    "create": ("POST", "/repos/create$"),
    "head": ("GET", "/api/datasets/"),
}


@pytest.fixture
def name(hub):
    return f"{hub.user}/rows"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scored, is_safe, steps):
    recipe = Recipe.read({"data": FACTS, "model": {"name": "toy"}, "select": {"threshold": 200.0}}).to_dict()
    out = tmp_path_factory.mktemp("push") / "out"
    # the rows are decided by their length, which nobody should
    write_folder(out, scored, is_safe, gather(scored, is_safe, steps=steps, recipe=recipe, anyway=True, **FACTS))
    return out


def test_one_commit_holds_everything_and_loads(hub, name, scored, is_safe, steps):
    done = push_filtered(scored, is_safe, name, steps=steps, anyway=True, **FACTS)
    repo = hub.repo(name)
    assert set(repo.files()) - {".gitattributes"} == FILES
    assert repo.head() == done.oid
    assert len([line for line in hub.requests("POST", "/commit/")]) == 1
    assert HfApi().dataset_info(name).private
    back = load_dataset(name, split="train")
    assert back["prompt"][:] == [row["prompt"] for row in scored if len(row["response"]) < 200]
    assert set(back.column_names) == {"prompt", "response", "category", "likes"}


def test_neither_dropped_text_nor_token_is_in_any_file(hub, name, folder):
    push_folder(folder, name)
    for path, content in hub.repo(name).files().items():
        assert SECRET.encode() not in content, path
        assert hub.token.encode() not in content, path


def test_a_bad_verdict_is_not_published_unless_the_user_insists(hub, name, scored, is_safe, steps, tmp_path):
    write_folder(tmp_path / "out", scored, is_safe, gather(scored, is_safe, steps=steps, **FACTS))
    before = (tmp_path / "out" / "provenance.json").read_bytes()
    with pytest.raises(PublishError, match="should not be published") as error:
        push_folder(tmp_path / "out", name)
    assert "is a control" in error.value.found and "`anyway=True`" in error.value.fix
    with pytest.raises(PublishError, match="should not be published"):
        push_filtered(scored, is_safe, name, steps=steps, **FACTS)
    assert not hub.requests("POST", "/repos/create$")
    push_folder(tmp_path / "out", name, anyway=True)
    files = hub.repo(name).files()
    record = json.loads(files["provenance.json"])
    assert (record["anyway"], record["verdict"]["finding"]) == (True, "control")
    assert b"Published in spite of the verdict." in files["README.md"]
    assert (tmp_path / "out" / "provenance.json").read_bytes() == before  # the folder is left as it was


def test_a_record_of_a_version_without_verdicts_is_published(hub, name, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    record = json.loads((folder / "provenance.json").read_text())
    old = {key: value for key, value in record.items() if key not in ("verdict", "anyway")}
    (tmp_path / "out" / "provenance.json").write_text(json.dumps(old))
    record_files(tmp_path / "out", PROVENANCE)
    push_folder(tmp_path / "out", name)
    files = hub.repo(name).files()
    assert json.loads(files["provenance.json"]) == old
    assert b"Verdict" not in files["README.md"]
    # but a record that claims to be no bad one is not believed
    (tmp_path / "out" / "provenance.json").write_text(
        json.dumps(old | {"verdict": record["verdict"] | {"bad": False, "trusted": True}})
    )
    record_files(tmp_path / "out", PROVENANCE)
    with pytest.raises(PublishError, match="should not be published"):
        push_folder(tmp_path / "out", name)


def test_the_recipe_is_read_back_from_the_card(hub, name, folder):
    push_folder(folder, name)
    assert Recipe.from_card(name).select.threshold == 200.0
    assert f"from_card('{name}')" in hub.repo(name).files()["README.md"].decode()


def test_pushing_again_keeps_own_words_and_leaves_no_stale_shard(hub, name, folder, scored, steps, tmp_path):
    push_folder(folder, name)
    card = hub.repo(name).files()["README.md"].decode().replace("# a barn", "# My barn, with words of mine")
    HfApi().upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=name, repo_type="dataset")
    stale = io.BytesIO(hub.repo(name).files()["data/train-00000-of-00001.parquet"])
    HfApi().upload_file(path_or_fileobj=stale, path_in_repo="data/train-00007-of-00009.parquet", repo_id=name,
                        repo_type="dataset")  # fmt: skip
    stale_ranks = "scoring/ranks-0123456789abcdef.json"
    for path in (stale_ranks, "scoring/make_scores.py"):
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo=path, repo_id=name, repo_type="dataset")
    stricter = IsSafe("length_score", 60.0)
    write_folder(tmp_path / "out", scored, stricter, gather(scored, stricter, steps=steps, **FACTS))
    push_folder(tmp_path / "out", name, anyway=True)
    files = hub.repo(name).files()
    assert [path for path in files if path.startswith("data/")] == ["data/train-00000-of-00001.parquet"]
    assert [path for path in files if path.startswith("scoring/")] == ["scoring/make_scores.py"]  # somebody else's
    assert "My barn, with words of mine" in files["README.md"].decode()
    assert len(load_dataset(name, split="train")) == sum(len(row["response"]) < 60 for row in scored)


@pytest.mark.parametrize("stage", ["preupload", "put", "commit", "head"])
@pytest.mark.parametrize("status", [409, 412, 429, 503])
def test_a_fault_that_passes_is_outlasted(hub, waits, name, folder, stage, status):
    HfApi().create_repo(name, repo_type="dataset")
    headers = {"Retry-After": "7"} if status == 429 else None
    hub.fail(*STAGES[stage], status, times=2, headers=headers)
    slept: list[float] = []
    push_folder(folder, name, sleep=slept.append)
    assert set(hub.repo(name).files()) - {".gitattributes"} == FILES
    if (stage, status) == ("commit", 429):
        assert slept == [7.0, 7.0]


@pytest.mark.parametrize("stage", ["put", "commit"])
def test_a_connection_cut_in_the_middle_is_outlasted(hub, waits, name, folder, stage):
    HfApi().create_repo(name, repo_type="dataset")
    hub.cut(*STAGES[stage], 500, times=2)
    push_folder(folder, name, sleep=lambda seconds: None)
    assert set(hub.repo(name).files()) - {".gitattributes"} == FILES


def test_a_lost_answer_is_not_a_second_commit(hub, waits, name, folder):
    HfApi().create_repo(name, repo_type="dataset")
    hub.lose_reply(*STAGES["commit"])
    before = len(hub.repo(name).history())
    done = push_folder(folder, name, sleep=lambda seconds: None)
    assert len(hub.repo(name).history()) == before + 1
    assert done.oid == hub.repo(name).head()


def test_another_writer_in_between_loses_nothing(hub, name, folder):
    HfApi().create_repo(name, repo_type="dataset")
    hub.race(name, {"notes.txt": b"theirs", "README.md": b"---\nlanguage: en\n---\n# Theirs\n"})
    push_folder(folder, name, sleep=lambda seconds: None)
    files = hub.repo(name).files()
    assert files["notes.txt"] == b"theirs"
    assert FILES <= set(files)
    assert "# Theirs" in files["README.md"].decode()


@pytest.mark.parametrize("stage", ["preupload", "put", "commit"])
def test_a_fault_that_stays_leaves_the_repository_as_it_was(hub, waits, name, folder, stage):
    HfApi().create_repo(name, repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="old.txt", repo_id=name, repo_type="dataset")
    before = hub.repo(name).head()
    hub.fail(*STAGES[stage], 503, times=10_000)
    with pytest.raises(PublishError, match="is unchanged") as error:
        push_folder(folder, name, sleep=lambda seconds: None)
    hub.faults.clear()
    assert hub.repo(name).head() == before
    assert hub.token not in str(error.value)


def test_no_right_to_write_is_said_with_the_next_step(hub, name, folder, monkeypatch):
    HfApi().create_repo(name, repo_type="dataset", private=True)
    other = hub.add_user("stranger")
    with pytest.raises(PublishError, match="hf auth login") as error:
        push_folder(folder, name, token=other, sleep=lambda seconds: None)
    assert other not in str(error.value)
    with pytest.raises(PublishError, match="owner/name"):
        push_folder(folder, "not a/repo/id")


def test_a_card_for_data_that_datasets_pushed(hub, name, scored, is_safe, steps):
    record = gather(scored, is_safe, steps=steps, **FACTS)
    clean = split(scored, is_safe).kept.remove_columns(record.columns_added)
    HfApi().create_repo(name, repo_type="dataset")
    with pytest.raises(PublishError, match="holds no data"):
        push_card(name, record)
    clean.push_to_hub(name)
    data = {path: content for path, content in hub.repo(name).files().items() if path.startswith("data/")}
    push_card(name, record)
    files = hub.repo(name).files()
    assert {path: content for path, content in files.items() if path.startswith("data/")} == data
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert metadata["dataset_info"]["splits"][0]["num_examples"] == 50
    assert metadata["license"] == "mit"
    assert json.loads(files["provenance.json"])["counts"]["kept"] == 50
    assert load_dataset(name, split="train").to_list() == clean.to_list()


def test_what_is_no_such_folder_is_said(tmp_path, hub, name):
    with pytest.raises(MissingError, match="not a publishable folder"):
        push_folder(tmp_path, name)


def test_the_dropped_list_reads_back(hub, name, folder):
    push_folder(folder, name)
    table = pq.read_table(io.BytesIO(hub.repo(name).files()["dropped.parquet"]))
    assert table.num_rows == 10


@pytest.mark.parametrize(("split", "name"), [("train[:40]", "train"), ("test[:9]+train", "train"), ("test", "test")])
def test_a_part_of_a_split_is_published_under_the_splits_name(tmp_path, split, name):
    for file in ("train", "test"):
        (tmp_path / f"{file}.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 60)
    files = {file: str(tmp_path / f"{file}.jsonl") for file in ("train", "test")}
    assert list(by_split(load_dataset("json", data_files=files, split=split))) == [name]


def test_own_words_and_metadata_are_left_as_they_are(hub, name, folder):
    """A card of a person's own: the word REPOSITORY, and a value that ends in three dashes."""
    own = "---\npretty_name: Best of ---\nnote: 'a --- b ---'\n---\n# REPOSITORY\n\nSee REPOSITORY.md ---\n"
    HfApi().create_repo(name, repo_type="dataset", private=True)
    HfApi().upload_file(path_or_fileobj=own.encode(), path_in_repo="README.md", repo_id=name, repo_type="dataset")
    push_folder(folder, name)
    text = hub.repo(name).files("main")["README.md"].decode()
    assert "# REPOSITORY\n\nSee REPOSITORY.md ---\n" in text
    head = DatasetCard(text).data.to_dict()
    assert (head["pretty_name"], head["note"]) == ("Best of ---", "a --- b ---")
    assert f"Recipe.from_card('{name}')" in text


def test_a_local_fault_is_not_called_a_broken_connection(hub, name, folder, monkeypatch):
    slept = []

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "/data/x.parquet")

    monkeypatch.setattr(HfApi, "create_commit", refused)
    with pytest.raises(PublishError, match="a file on this machine") as error:
        push_folder(folder, name, sleep=slept.append)
    assert "Permission denied: /data/x.parquet" in error.value.found and not slept


def _secret(folder):
    secret = folder.parent / "secret.txt"
    secret.write_text("a private key")
    return secret


@pytest.mark.parametrize(
    "name", ["croissant.json", "dropped.parquet", "plots/scores.png", "provenance.json", "plots/more.svg"]
)
def test_a_link_in_the_folder_is_not_pushed(hub, folder, tmp_path, name):
    own = shutil.copytree(folder, tmp_path / "out")
    target = _secret(own)
    if name == "provenance.json":  # one that says the right things, from elsewhere
        target = (own / name).rename(own.parent / "provenance.json")
    (own / name).unlink(missing_ok=True)
    (own / name).symlink_to(target)
    with pytest.raises(IntegrityError, match=f"{name} is a link"):
        push_folder(own, f"{hub.user}/rows", anyway=True)
    assert not hub.repos


def test_a_folder_elsewhere_and_files_of_other_kinds_are_not_pushed(hub, folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "out")
    (own / "plots" / "id_rsa").write_text("a private key")
    with pytest.raises(IntegrityError, match="plots/id_rsa is not a"):
        push_folder(own, f"{hub.user}/rows", anyway=True)
    (own / "plots").rename(tmp_path / "plots")
    (tmp_path / "plots" / "id_rsa").unlink()
    (own / "plots").symlink_to(tmp_path / "plots")
    with pytest.raises(IntegrityError, match="is outside the folder"):
        push_folder(own, f"{hub.user}/rows", anyway=True)
    assert not hub.repos
