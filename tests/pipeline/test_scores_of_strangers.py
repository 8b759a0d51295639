"""A stranger's machine: a store of its own, and nothing but the published folder, the source and the model."""

import json
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from altered_folders import described
from datasets import Dataset

from hf_safefilter.pipeline import starter_again
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.scoring import scoring_files, take_scoring
from hf_safefilter.storage import fitted
from hf_safefilter.toy import toy_model_path
from hf_safefilter.toy.corpus import mixed_rows


@pytest.fixture(scope="module")
def source():
    return Dataset.from_list([{name: row[name] for name in ("prompt", "response")} for row in mixed_rows(40, 0.25, 3)])


def published(source, folder, model="toy"):
    facts = {"license": "cc0-1.0", "source": "a test"}
    recipe = {"data": facts, "model": model, "layer": 5, "select": {"drop_fraction": 0.3}}
    done = purify(source, recipe, anyway=True)
    write_folder(folder, done.scored, done.is_safe, done.provenance)
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return published(source, tmp_path_factory.mktemp("made") / "out")


@pytest.fixture
def stranger(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
    fitted._open.cache_clear()  # what this process has opened
    yield shutil.copytree(made, tmp_path / "out")
    fitted._open.cache_clear()


def checks(folder, source):
    return {line.check: line for line in Verification(folder, source, sample=None).lines()}


def test_all_lines_pass(stranger, source):
    found = checks(stranger, source)
    assert {line.result for line in found.values()} == {"pass"}, found
    assert "the probe and the ranks published with them and the starter references, made again" in found["scores"].why
    again = checks(stranger, source)["scores"]  # they are this stranger's by now
    assert again.result == "pass" and "made again" not in again.why


def test_nothing_that_is_published_holds_a_text(stranger):
    names = {path.relative_to(stranger).as_posix().split("-")[0] for path in scoring_files(stranger)}
    assert names == {"scoring/probe", "scoring/ranks"}
    assert {path.suffix for path in scoring_files(stranger)} == {".json", ".safetensors"}


def test_altered_scores_are_found(stranger, source):
    table = pq.read_table(stranger / "dropped.parquet")
    at = table.column_names.index("probe_score")
    moved = pc.add(table["probe_score"], pa.scalar(1, table.schema.field("probe_score").type))
    pq.write_table(table.set_column(at, "probe_score", moved), stranger / "dropped.parquet")
    described(stranger)
    assert checks(stranger, source)["scores"].result == "fail"


def test_another_probe_in_its_place_is_refused(stranger, source, made):
    place = next((stranger / "scoring").glob("probe-*"))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["facts"]["weight"] = 2.0
    (place / "manifest.json").write_text(json.dumps(manifest))
    described(stranger)
    found = checks(stranger, source)["scores"]
    assert found.result == "fail" and "holds another probe" in found.why


def test_a_changed_byte_of_it_is_refused(stranger, source):
    file = next(path for path in scoring_files(stranger) if path.suffix == ".safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    found = checks(stranger, source)
    assert {found[name].result for name in ("files", "scores")} == {"fail"}
    (stranger / "scoring" / "probe-more").mkdir()
    (stranger / "scoring" / "probe-more" / "manifest.json").write_text("{}")
    assert "is not the file" in found["files"].why and checks(stranger, source)["files"].result == "fail"


def test_without_it_nothing_can_be_said(stranger, source):
    shutil.rmtree(stranger / "scoring")
    found = checks(stranger, source)
    assert (found["files"].result, found["scores"].result) == ("fail", "cannot say")


def test_a_starter_set_of_other_rows_cannot_stand_for_it(stranger, source, monkeypatch):
    monkeypatch.setattr(starter_again.ReferenceIndex, "rows_digest", property(lambda self: "sha256:" + "0" * 64))
    found = checks(stranger, source)["scores"]
    assert found.result == "cannot say" and "is not the one that was used" in found.why


def test_what_no_step_names_is_not_taken(stranger):
    steps = json.loads((stranger / "provenance.json").read_text())["steps"]
    named = [step for step in steps if "probe" not in step]
    assert take_scoring(stranger, named) == ["ranks"] and take_scoring(stranger, steps) == ["probe"]


def test_a_path_of_the_publisher_is_not_published(source, tmp_path):
    model = shutil.copytree(toy_model_path(), tmp_path / "models" / "mine")
    folder = published(source, tmp_path / "out", str(model))
    assert not [path for path in folder.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]
    assert {path.parent.name.partition("-")[0] for path in scoring_files(folder)} == {"ranks"}
