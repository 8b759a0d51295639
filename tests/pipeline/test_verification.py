"""A stranger's check of a published folder: it passes as made, and what was altered is named."""

import errno
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from altered_folders import described
from datasets import Dataset

from hf_safefilter.data.batch import Batch
from hf_safefilter.errors import IntegrityError, MissingError, ModelError, SafefilterError
from hf_safefilter.pipeline import verification
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.pipeline.recorded_scoring import RecordedScoring
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.provenance import Decision
from hf_safefilter.publish.rescoring import rescored
from hf_safefilter.saved.saved_rows import step_from
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.storage import fitted
from hf_safefilter.storage.artifacts import store_root
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

FACTS = {"license": "cc0-1.0", "source": "a test"}
SHARD = "data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def source():
    return Dataset.from_list([*mixed_rows(40, 0.25, 3), {"prompt": "Hi", "response": "", "label": "", "category": ""}])


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name, rows in zip(("unsafe", "safe"), reference_rows(12, 3), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "data": FACTS,
        "model": "toy",
        "references": {name: str(folder / f"{name}.jsonl") for name in ("unsafe", "safe")} | {"benign": None} | FACTS,
        "layer": 5,
        "select": {"drop_fraction": 0.3},
    }
    done = purify(source, recipe, anyway=True)
    write_folder(folder / "out", done.scored, done.is_safe, done.provenance)
    return folder / "out"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def caused(error, cause):
    error.__cause__ = cause
    return error


def results(folder, source, **options):
    return {line.check: line.result for line in Verification(folder, source, **options).lines()}


def changed(folder, file, change):
    table = pq.read_table(folder / file)
    pq.write_table(change(table), folder / file)
    described(folder)


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def record_with(folder, change):
    body = json.loads((folder / "provenance.json").read_text())
    change(body)
    (folder / "provenance.json").write_text(json.dumps(body))


def with_threshold(folder, value):
    record_with(folder, lambda body: body["selection"].update(threshold=value, threshold_hex=value.hex()))


ALTERED = {
    "files": lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes() + b" "),
    "card": lambda folder: (folder / "README.md").write_text(
        (folder / "README.md").read_text().replace("28 of 41 rows", "40 of 41 rows")
    ),
    "decision": lambda folder: with_threshold(folder, 99.0),
    "rows": lambda folder: changed(
        folder, SHARD, lambda table: with_column(table, "response", pa.array(["other words"] * table.num_rows))
    ),
    "scores": lambda folder: changed(
        folder,
        "dropped.parquet",
        lambda table: with_column(
            table, "largest_deviation_score", pc.add(table["largest_deviation_score"], pa.scalar(0.001, pa.float32()))
        ),
    ),
}


def test_what_was_made_passes(made, source):
    lines = Verification(made, source, sample=None).lines()
    assert [(line.check, line.result) for line in lines] == [(name, "pass") for name in ALTERED], lines
    assert "41 rows" in lines[-1].why


@pytest.mark.parametrize("check", ALTERED)
def test_what_was_altered_fails_by_name(folder, source, check):
    ALTERED[check](folder)
    assert results(folder, source, sample=None)[check] == "fail"


def test_a_lower_threshold_that_kept_rows_reach_fails_when_they_are_scored(folder, source):
    with_threshold(folder, 0.1)
    assert results(folder, source, sample=None)["scores"] == "fail"


def test_scores_of_dropped_rows_that_are_others_fail_though_their_ranks_follow(folder, source):
    """Probe scores doubled, with the ranks that these have among the fitted ones."""
    step = step_from(json.loads((folder / "provenance.json").read_text())["steps"][-1])

    def doubled(table):
        table = with_column(table, "ensemble_score", pc.multiply(table["ensemble_score"], pa.scalar(2, pa.float32())))
        for name, values in step.compute(Batch(table), None).items():
            table = with_column(table, name, pa.array(values))
        return table

    changed(folder, "dropped.parquet", doubled)
    assert results(folder, source, sample=None)["scores"] == "fail"


def test_one_byte_anywhere_is_noticed(folder, source):
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "signed.json":  # the record of whoever wrote the folder, for themselves
            own = path.read_bytes()
            at = len(own) // 2
            path.write_bytes(own[:at] + bytes([own[at] ^ 1]) + own[at + 1 :])
            assert "fail" in results(folder, source, sample=4).values(), path.name
            path.write_bytes(own)


def test_a_row_moved_from_dropped_to_kept_is_found(folder, source):
    dropped = pq.read_table(folder / "dropped.parquet")
    row = next(row for row in source.to_list() if row["label"] == "unsafe")
    changed(folder, SHARD, lambda table: pa.concat_tables([table, pa.table({k: [row[k]] for k in table.column_names})]))
    assert dropped.num_rows and results(folder, source)["rows"] == "fail"


def test_without_the_source_two_lines_cannot_be_said(made):
    found = results(made, None)
    assert [found[name] for name in ALTERED] == ["pass", "pass", "pass", "cannot say", "cannot say"]


def test_another_source_fails(made, source):
    assert results(made, source.select(range(40)))["rows"] == "fail"


def test_without_the_references_the_scores_cannot_be_said(made, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
    fitted._open.cache_clear()  # what this process has opened
    found = results(made, source)
    fitted._open.cache_clear()
    assert (found["rows"], found["scores"]) == ("pass", "cannot say")


@pytest.mark.parametrize(("kind", "result"), [("references", "cannot say"), ("ranks", "pass")])
def test_a_damaged_store_of_whoever_verifies_is_no_fault_of_the_set(made, source, tmp_path, monkeypatch, kind, result):
    """What was published is taken again; references that were not published are to be had elsewhere."""
    mine = tmp_path / "mine"
    shutil.copytree(store_root(), mine)
    for folder in (mine / kind).iterdir():
        for file in folder.iterdir():
            file.chmod(0o644)
            file.write_bytes(b"x" + file.read_bytes())
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(mine))
    fitted._open.cache_clear()
    found = results(made, source)
    fitted._open.cache_clear()
    assert (found["files"], found["rows"], found["scores"]) == ("pass", "pass", result)


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ModelError("no such model"), "cannot say"),
        (MemoryError(), "cannot say"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot say"),
        (caused(SafefilterError("a part cannot be written"), OSError(errno.ENOSPC, "No space")), "cannot say"),
        (caused(IntegrityError("a file cannot be read"), OSError(errno.EIO, "broken")), "fail"),
        (IntegrityError("out of memory, says a row"), "fail"),
        (KeyError("out of memory, says a row"), "fail"),
        (AttributeError("a record of another shape"), "fail"),
    ],
    ids=repr,
)
def test_what_this_machine_lacks_is_no_fault_of_the_set(made, source, monkeypatch, error, result):
    def fails(*_):
        raise error

    monkeypatch.setattr(verification, "rescored", fails)
    found = results(made, source)
    assert (found["scores"], found["rows"]) == (result, "pass")


def test_a_step_of_another_version_cannot_be_judged(folder, source):
    record_with(folder, lambda body: body["steps"][0].update(algorithm=1))
    described(folder)
    assert results(folder, source)["scores"] == "cannot say"


def test_another_folder_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"holds no provenance\.json"):
        Verification(tmp_path).lines()


def test_in_the_shell(call, folder, source, tmp_path):
    source.to_json(tmp_path / "rows.jsonl")
    code, out, _ = call("--format", "json", "verify", folder, "--source", tmp_path / "rows.jsonl", "--sample", 8)
    said = json.loads(out)
    assert code == 0 and said["failed"] == [] and len(said["lines"]) == 5
    ALTERED["rows"](folder)
    code, out, _ = call("--format", "json", "verify", folder, "--source", tmp_path / "rows.jsonl", "--sample", 8)
    assert code == 3 and "rows" in json.loads(out)["failed"]


def test_a_row_that_was_dropped_and_its_copy_that_was_kept_cannot_both_be_right(tmp_path):
    """Nothing is invented and nothing is missing: the copy of a dropped row was moved among the kept ones."""
    source = Dataset.from_list([{"prompt": "Hi", "response": "a" * length} for length in (9, 9, 1, 2, 3, 4)])
    recipe = {"data": FACTS, "model": "toy", "methods": "length", "select": {"drop_count": 2}}
    done = purify(source, recipe, anyway=True)
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance)
    assert results(tmp_path / "out", source)["rows"] == "pass"
    changed(tmp_path / "out", "dropped.parquet", lambda table: table.slice(0, 1))
    one = pa.Table.from_pylist([source[0]])
    changed(
        tmp_path / "out",
        SHARD,
        lambda table: pa.concat_tables([table, one], promote_options="default").select(table.column_names),
    )
    (line,) = [line for line in Verification(tmp_path / "out", source).lines() if line.check == "rows"]
    assert (line.result, line.why.partition(" (")[0]) == ("fail", "1 rows of train are kept and dropped")


def test_a_kept_row_may_reach_the_threshold_by_rounding_and_by_no_more():
    rows = Dataset.from_list([{"prompt": "Hi", "response": "a" * 5}])
    for threshold, agrees in ((4.995, True), (4.98, False)):
        stated = Decision(column="length_score", threshold=threshold, threshold_hex=threshold.hex(), rule="by hand")
        scoring = RecordedScoring(
            [LengthScore()], "length_score", threshold, stated, None, ("length_score",), np.array([0.01])
        )
        with nullcontext() if agrees else pytest.raises(IntegrityError, match="a row was kept that has the scores"):
            scoring.require_alike(["id"], rescored(rows, scoring.steps), {"id": None}, [False])
