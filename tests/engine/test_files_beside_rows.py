"""What lies beside the rows of a `save_to_disk` folder is no result of ours, whatever its name says.

The attacks lay there what `datasets` would have cached: scores, kept rows, and the fingerprint of other rows.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_from_disk

from hf_safefilter.decide import select
from hf_safefilter.decide.select import IsSafe, split
from hf_safefilter.engine.local import score_rows
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.step import ROWS_PER_CALL

LENGTHS = np.arange(1, 41)


def folder_of(path: Path, letter: str = "a") -> Path:
    rows = [{"prompt": f"{number}?", "response": letter * number} for number in LENGTHS.tolist()]
    Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "rows")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewritten(path: Path, column: str, values: list) -> None:
    """An Arrow file with the values of a column changed, by its own types."""
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    field = table.schema.field(column)
    table = table.set_column(table.column_names.index(column), field, pa.array(values, field.type))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def test_scores_that_lie_there_are_not_read(folder):
    """`Dataset.map` looks for its result beside the rows, under a name that follows from them and the step."""
    rows, step = load_from_disk(folder), LengthScore()
    options = {"batched": True, "batch_size": ROWS_PER_CALL, "num_proc": None, "with_rank": True, "desc": "LengthScore"}
    rows.map(step, **options)
    read = list(rows.column_names)
    rows.select_columns(read).map(step, remove_columns=read, **options)
    planted = list(folder.glob("cache-*.arrow"))
    assert len(planted) == 2
    for path in planted:
        rewritten(path, "length_score", LENGTHS[::-1].tolist())
    for part in (load_from_disk(folder), load_from_disk(folder).select(range(40))):
        assert score_rows(part, step)["length_score"][:] == LENGTHS.tolist()


def test_kept_rows_that_lie_there_are_not_read_and_nothing_is_laid_there(folder):
    before = contents(folder)
    scored, is_safe = score_rows(load_from_disk(folder), LengthScore()), IsSafe("length_score", 31.0)
    first = split(scored, is_safe)
    assert contents(folder) == before
    for part in (first.kept, first.dropped):  # as another process would meet them, had they names to be known by
        path = Path(part.cache_files[0]["filename"])
        rewritten(path, "response", ["poison"] * len(part))
        (folder / path.name).write_bytes(path.read_bytes())
    again = split(score_rows(load_from_disk(folder), LengthScore()), is_safe)
    assert [len(text) for text in again.kept["response"]] == list(range(1, 31))


def test_two_sets_that_claim_one_fingerprint_are_told_apart(tmp_path):
    """Fingerprints come with the rows: a stranger may write down that of a set which is scored before."""
    kept = []
    for letter in ("a", "b"):
        rows = load_from_disk(folder_of(tmp_path / letter, letter))
        scored = rows.add_column("length_score", LENGTHS.astype(np.float32))
        scored._fingerprint = "0" * 16
        kept.append(split(scored, IsSafe("length_score", 31.0)).kept["response"][0])
    assert kept == ["a", "b"]


def test_the_same_split_of_the_same_object_is_written_once(folder, monkeypatch):
    scored, is_safe = score_rows(load_from_disk(folder), LengthScore()), IsSafe("length_score", 31.0)
    first = split(scored, is_safe)
    monkeypatch.setattr(select, "_written", lambda *_: pytest.fail("it was written again"))
    assert split(scored, IsSafe("length_score", 31.0)).kept is first.kept
