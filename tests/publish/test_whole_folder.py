"""A published folder is looked at to the last byte: what was altered, added, removed or linked is named."""

import json
import random
import shutil

import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, snapshot_download

from hf_safefilter.errors import IntegrityError
from hf_safefilter.publish.card import stated_in
from hf_safefilter.publish.data_files import read_published
from hf_safefilter.publish.folder import PROVENANCE, write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.push import push_folder
from hf_safefilter.publish.whole_folder import require_undamaged

FACTS = {"license": "cc0-1.0", "source": "a barn"}
SHARD = "data/train-00000-of-00001.parquet"
FILES = [SHARD, "README.md", "croissant.json", "dropped.parquet", PROVENANCE, "plots/scores.png", "plots/scores.svg"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, scored, is_safe, steps):
    out = tmp_path_factory.mktemp("whole") / "out"
    write_folder(out, scored, is_safe, gather(scored, is_safe, steps=steps, anyway=True, **FACTS))
    return out


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def others_in(folder):
    return require_undamaged(folder, Provenance.from_json((folder / PROVENANCE).read_bytes()))


def test_what_was_written_is_whole_and_files_of_the_hub_are_no_others(folder):
    assert others_in(folder) == []
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (folder / "LICENSE").write_text("mine")
    (folder / ".gitattributes_not.py").write_text("mine")
    assert others_in(folder) == [".gitattributes_not.py", "LICENSE"]


@pytest.mark.parametrize("name", FILES)
def test_one_byte_anywhere_in_a_file_is_named(folder, name):
    own = (folder / name).read_bytes()
    draw = random.Random(3)
    for at in [0, len(own) // 2, len(own) - 1, *(draw.randrange(len(own)) for _ in range(10))]:
        (folder / name).write_bytes(own[:at] + bytes([own[at] ^ 1]) + own[at + 1 :])
        with pytest.raises(IntegrityError) as error:
            others_in(folder)
        assert name.rpartition("/")[2] in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_more_or_less_is_named(folder, name):
    own = (folder / name).read_bytes()
    for content in (own[:-1], own + b"\n", b""):
        (folder / name).write_bytes(content)
        with pytest.raises(IntegrityError, match=name.rpartition("/")[2]):
            others_in(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_elsewhere_is_named_though_it_holds_the_same(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=f"{name} is outside the folder"):
        others_in(folder)


@pytest.mark.parametrize(
    "name",
    ["data/train-00001.jsonl", "data/more/train-00000-of-00001.parquet", "data/x.PARQUET", "plots/x/y", "scoring/x"],
)
def test_data_that_were_added_are_named(folder, name):
    """A card asks for data/train-*, so that `load_dataset` would read some of these."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text('{"prompt": "x", "response": "y"}\n')
    with pytest.raises(IntegrityError, match=f"{name} was added"):
        others_in(folder)


def test_a_folder_of_links_is_named(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "data" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="data/more was added"):
        others_in(folder)


def test_the_card_of_a_downloaded_folder_is_that_of_its_repository(hub, made, tmp_path):
    name = f"{hub.user}/my__rows"
    push_folder(made, name, anyway=True)
    folder = tmp_path / "taken"
    snapshot_download(name, repo_type="dataset", local_dir=folder)
    provenance, published = Provenance.from_json((folder / PROVENANCE).read_bytes()), read_published(folder)
    card = (folder / "README.md").read_text()
    for repository, stated in {None: True, name: True, "some/body": False}.items():
        assert stated_in(card, provenance, published, text_included=False, repository=repository) == stated
    other = card.replace("50 of 60 rows", "51 of 60 rows")
    assert other != card and not stated_in(other, provenance, published, text_included=False)


def test_what_was_pushed_is_whole_with_the_words_of_its_owner(hub, made, tmp_path):
    name = f"{hub.user}/rows"
    push_folder(made, name, anyway=True)
    card = hub.repo(name).files()["README.md"].replace(b"# a barn", b"# My barn")
    HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=name, repo_type="dataset")
    snapshot_download(name, repo_type="dataset", local_dir=tmp_path / "edited")
    with pytest.raises(IntegrityError, match=r"README\.md is not the file"):
        others_in(tmp_path / "edited")
    push_folder(made, name, anyway=True)  # keeps these words, and describes them
    taken = snapshot_download(name, repo_type="dataset", local_dir=tmp_path / "again")
    assert others_in(tmp_path / "again") == [] and "# My barn" in (tmp_path / "again" / "README.md").read_text()
    assert len(load_dataset(taken, split="train")) == json.loads((made / PROVENANCE).read_text())["counts"]["kept"]
