"""What is pushed is what was made: a folder that was touched since is refused before the Hub hears of it."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_safefilter.errors import IntegrityError
from hf_safefilter.publish.croissant import RECORD as CROISSANT
from hf_safefilter.publish.folder import PROVENANCE, write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.push import push_folder
from hf_safefilter.storage.artifacts import file_sha256
from hf_safefilter.storage.recorded_files import RECORD, record_files

SHARD = "data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory, scored, is_safe, steps):
    out = tmp_path_factory.mktemp("made") / "out"
    write_folder(out, scored, is_safe, gather(scored, is_safe, steps=steps, license="mit", source="a", anyway=True))
    return out


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def name(hub):
    return f"{hub.user}/rows"


def poisoned(file):
    table = pq.read_table(file)
    cells = pa.array(["poison"] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("response"), "response", cells), file)


def described_again(folder):
    """The Croissant record with the digests that the files have now."""
    record = json.loads((folder / CROISSANT).read_text())
    for entry in record["distribution"]:
        entry["sha256"] = file_sha256(folder / entry["name"])
    (folder / CROISSANT).write_text(json.dumps(record))


def with_fact(folder, **facts):
    record = json.loads((folder / PROVENANCE).read_text())
    (folder / PROVENANCE).write_text(json.dumps(record | facts))


ATTACKS = {
    "kept rows": lambda folder: poisoned(folder / SHARD),
    "kept rows and their digest": lambda folder: (poisoned(folder / SHARD), described_again(folder)),
    "one more shard": lambda folder: shutil.copy(folder / SHARD, folder / "data" / "train-00001-of-00002.parquet"),
    "one more split": lambda folder: shutil.copy(folder / SHARD, folder / "data" / "test-00000-of-00001.parquet"),
    "list of the dropped": lambda folder: (folder / "dropped.parquet").unlink(),
    "verdict": lambda folder: with_fact(folder, verdict=None),
    "plot": lambda folder: (folder / "plots" / "scores.png").write_bytes(b"a picture"),
    "link": lambda folder: (folder / "plots" / "more.png").symlink_to("/etc/hostname"),
    "description": lambda folder: (folder / CROISSANT).unlink(),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("trust", [False, True])
def test_a_folder_that_was_touched_is_not_pushed(hub, name, folder, attack, trust):
    ATTACKS[attack](folder)
    with pytest.raises(IntegrityError, match="is damaged|is a link"):
        push_folder(folder, name, trust_vectors=trust)
    assert not hub.requests("POST", "/repos/create$")
    record_files(folder, PROVENANCE)  # as the attacker would write it, with another signature
    (folder / RECORD).write_text(json.dumps(json.loads((folder / RECORD).read_text()) | {"signature": "0" * 64}))
    with pytest.raises(IntegrityError, match="not written by this user|is a link"):
        push_folder(folder, name)
    assert not hub.requests("POST", "/repos/create$")


@pytest.mark.parametrize("attack", ["kept rows", "one more shard", "list of the dropped", "description"])
def test_whoever_is_trusted_data_must_be_those_that_are_described(hub, name, folder, attack):
    (folder / RECORD).unlink()
    ATTACKS[attack](folder)
    with pytest.raises(IntegrityError, match=f"{CROISSANT} (describes|is missing|does not describe)"):
        push_folder(folder, name, trust_vectors=True)


def test_a_folder_of_another_machine_is_pushed_if_trusted_and_the_card_says_so(hub, name, folder):
    (folder / RECORD).unlink()
    with pytest.raises(IntegrityError, match="not written by this user"):
        push_folder(folder, name)
    push_folder(folder, name, trust_vectors=True)
    files = hub.repo(name).files()
    assert json.loads(files["provenance.json"])["trusted_vectors"] is True
    assert b"**Not made here:**" in files["README.md"] and RECORD not in files


def test_the_record_stays_at_home(hub, name, folder):
    push_folder(folder, name)
    assert RECORD not in hub.repo(name).files()
    assert b"Not made here" not in hub.repo(name).files()["README.md"]
