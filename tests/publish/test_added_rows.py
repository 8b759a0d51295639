"""Refusals that were added: stated on the card, marked in the data, told apart from the source by a stranger."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from altered_folders import described
from datasets import DatasetDict, load_dataset

from hf_safefilter.decide.additions import Additions, RefusalsToAdd
from hf_safefilter.decide.select import split
from hf_safefilter.errors import OptionError, PublishError
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.source_rows import require_source_rows

FACTS = {"license": "cc0-1.0", "source": "a test", "anyway": True}
OWN = ["prompt", "response", "category", "likes"]
REFUSALS = tuple({"prompt": f"harm {n}?", "response": f"No {n}.", "category": "harm"} for n in range(5))
SHARD = "data/train-00000-of-00001.parquet"


def added(scored, is_safe):
    parts = split(scored, is_safe)
    return Additions.choose(RefusalsToAdd(4, REFUSALS, "my refusals", "mit"), parts.kept, parts.dropped, OWN)


@pytest.fixture(scope="module")
def made(scored, is_safe, steps, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    additions = added(scored, is_safe)
    provenance = gather(scored, is_safe, steps=steps, additions=additions, **FACTS)
    write_folder(out, scored, is_safe, provenance, additions=additions)
    return out


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture(scope="module")
def source(scored):
    return scored.select_columns(OWN)


def results(folder, source):
    return {line.check: line.result for line in Verification(folder, source, sample=None).lines()}


def test_the_rows_are_at_the_end_and_marked(made, scored, is_safe, source):
    rows = load_dataset(str(made), split="train")
    kept = [row for row, score in zip(source, scored["length_score"], strict=True) if score < 200]
    assert rows.remove_columns("added").select(range(50)).to_list() == kept
    assert rows["added"][:] == [None] * 50 + ["refusal"] * 4
    assert rows["response"][50:] == [row["response"] for row in REFUSALS[:4]]
    provenance = Provenance.from_json((made / "provenance.json").read_text())
    assert (provenance.counts.kept, provenance.added.rows, provenance.added.split) == (50, 4, "train")
    card = (made / "README.md").read_text()
    assert "**Added:** 4 refusals after the rows of `train`, from my refusals (licence mit)" in card
    assert "num_examples: 54" in card and '"54 rows in 1 files"' in (made / "croissant.json").read_text()


def test_a_stranger_tells_them_from_the_source(made, source):
    assert set(results(made, source).values()) == {"pass"}


def changed(folder, change):
    pq.write_table(change(pq.read_table(folder / SHARD)), folder / SHARD)
    described(folder)


def marked_at(place, mark):
    def change(table):
        marks = table["added"].to_pylist()
        marks[place] = mark
        return table.set_column(table.column_names.index("added"), "added", pa.array(marks, pa.string()))

    return change


@pytest.mark.parametrize(
    "change", [marked_at(3, "refusal"), marked_at(51, None), lambda table: table.slice(0, 53),
               lambda table: pa.concat_tables([table, table.slice(50, 1)])],
    ids=["a row of the source", "no longer", "one less", "one more"],
)  # fmt: skip
def test_other_rows_than_stated_are_found(folder, source, change):
    changed(folder, change)
    assert results(folder, source)["decision"] == "fail"


def test_every_split_has_the_column(scored, is_safe, steps, tmp_path):
    both = DatasetDict(train=scored.select(range(30)), test=scored.select(range(30, 60)))
    additions = added(both, is_safe)
    provenance = gather(both, is_safe, steps=steps, additions=additions, **FACTS)
    write_folder(tmp_path / "out", both, is_safe, provenance, additions=additions)
    rows = load_dataset(str(tmp_path / "out"))
    assert {name: len(part) for name, part in rows.items()} == {"train": 34, "test": 20}
    assert rows["test"]["added"][:] == [None] * 20
    sources = DatasetDict({name: part.select_columns(OWN) for name, part in both.items()})
    assert set(results(tmp_path / "out", sources).values()) == {"pass"}
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    record["added"]["split"] = "test"
    (tmp_path / "out" / "provenance.json").write_text(json.dumps(record))
    assert results(tmp_path / "out", sources)["decision"] == "fail"


def test_what_was_added_must_be_stated(scored, is_safe, steps, tmp_path):
    additions = added(scored, is_safe)
    plain = gather(scored, is_safe, steps=steps, **FACTS)
    with pytest.raises(OptionError, match="not those of the record"):
        write_folder(tmp_path / "out", scored, is_safe, plain, additions=additions)


def test_written_additions_are_compared(made, scored, is_safe):
    additions = added(scored, is_safe)
    without = ["random_score", "length_score", "added"]
    require_source_rows([made / SHARD], scored, is_safe, without, additions.rows)
    for wrong in (additions.rows.select([0, 1, 2]), additions.rows.select([1, 0, 2, 3]), None):
        with pytest.raises(PublishError, match="other than|are not those"):
            require_source_rows([made / SHARD], scored, is_safe, without, wrong)
