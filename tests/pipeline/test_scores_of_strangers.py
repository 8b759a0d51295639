"""A stranger's machine: a store of its own, and nothing but the published folder, the source and the model."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from altered_folders import described
from datasets import Dataset
from safetensors.numpy import load, save

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.pipeline import made_again as again
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.pipeline.recorded_scoring import RecordedScoring, may_be_scale_of
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish import scoring
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.scoring import scoring_files
from hf_safefilter.scores.largest import scale_of
from hf_safefilter.scores.probe import fit as probe_fit
from hf_safefilter.scores.ranks import Ranks
from hf_safefilter.starter import SOURCE, TRAITS
from hf_safefilter.storage import artifacts, fitted
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
    assert "with the starter references and the probe, made again here" in found["scores"].why
    again = checks(stranger, source)["scores"]  # they are this stranger's by now
    assert again.result == "pass"
    assert {line.result for line in Verification(stranger, source, sample=12).lines()} == {"pass"}


def test_what_is_published_holds_numbers_and_no_text(stranger):
    names = [path.relative_to(stranger).as_posix() for path in scoring_files(stranger)]
    assert [re.sub("-.*[.]", ".", name) for name in names] == [
        "scoring/probe.json", "scoring/ranks.json", "scoring/ranks.safetensors",
    ]  # fmt: skip
    assert all(scoring.OURS.fullmatch(name) for name in names)


def test_altered_scores_are_found(stranger, source):
    table = pq.read_table(stranger / "dropped.parquet")
    at = table.column_names.index("ensemble_score")
    moved = pc.add(table["ensemble_score"], pa.scalar(1, table.schema.field("ensemble_score").type))
    pq.write_table(table.set_column(at, "ensemble_score", moved), stranger / "dropped.parquet")
    described(stranger)
    assert checks(stranger, source)["scores"].result == "fail"


def manifest_of(folder, kind):
    return next((folder / "scoring").glob(f"{kind}-*.json"))


def test_another_description_in_its_place_is_refused(stranger, source):
    for kind in ("ranks", "probe"):  # what is refused is not kept
        path = manifest_of(stranger, kind)
        before = path.read_text()
        for content in (before.replace("1", "2"), "[]", "{}", "null", '{"facts": NaN}', "[" * 100_000, "x" * 2**21):
            path.write_text(content)
            described(stranger)
            found = checks(stranger, source)["scores"]
            assert found.result == "fail" and "something else" in found.why, (kind, content[:20])
        path.write_text(before)


def with_ranks(folder, tensors):
    """The folder with other ranks, and a record that names them: a lie without a contradiction."""
    content = tensors if isinstance(tensors, bytes) else save(tensors)
    path = manifest_of(folder, "ranks")
    body = json.loads(path.read_text())
    body["files"]["ranks.safetensors"] = hashlib.sha256(content).hexdigest()
    manifest = artifacts.Manifest(body["kind"], body["version"], body["facts"], body["files"])
    record = json.loads((folder / "provenance.json").read_text())
    step = next(step for step in record["steps"] if "ranks" in step)
    step["ranks"] = manifest.digest
    (folder / "provenance.json").write_text(json.dumps(record))
    for old in (folder / "scoring").glob("ranks-*"):
        old.unlink()
    stem = folder / "scoring" / f"ranks-{manifest.digest[7:23]}"
    stem.with_suffix(".json").write_text(manifest.to_json())
    stem.with_suffix(".safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (b"garbage", "something else"),
        ({}, "something else"),
        ({"0": np.zeros((3, 3), np.float32), "1": np.zeros(3, np.float32)}, "something else"),
        ({"0": np.array([1, np.nan], np.float32), "1": np.zeros(3, np.float32)}, "something else"),
        ({"0": np.array([2, 1], np.float32), "1": np.zeros(3, np.float32)}, "something else"),
        (
            {"0": np.zeros(3, np.float32), "1": np.zeros(3, np.float32), "more": np.zeros(3, np.float32)},
            "something else",
        ),
        ({"0": np.zeros(41, np.float32), "1": np.zeros(3, np.float32)}, "something else"),
        ({"0": np.zeros(10**5, np.float32), "1": np.zeros(3, np.float32)}, "something else"),
    ],
    ids=range(8),
)
def test_ranks_that_are_none_are_refused(stranger, source, lie, said):
    with_ranks(stranger, lie)
    found = checks(stranger, source)
    assert found["scores"].result == "fail" and said in found["scores"].why
    assert found["rows"].result == "pass"  # the other lines are there


def test_a_file_of_more_numbers_than_rows_is_not_even_read(stranger, monkeypatch):
    steps = json.loads((stranger / "provenance.json").read_text())["steps"]
    digest = next(step["ranks"] for step in steps if "ranks" in step)
    file = next((stranger / "scoring").glob("ranks-*.safetensors"))
    with file.open("r+b") as stream:
        stream.truncate(2**30)  # a hole: it takes no room
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(IntegrityError, match="something else"):
        scoring.take_ranks(stranger, digest, 40)


def test_no_tolerance_that_is_stated_is_believed(stranger, source):
    """Ranks with two huge scores among them would allow any score; so would a tolerance in the record."""
    honest = load(next((stranger / "scoring").glob("ranks-*.safetensors")).read_bytes())
    wide = {name: np.r_[np.float32(-1e18), scores[1:-1], np.float32(1e18)] for name, scores in honest.items()}
    with_ranks(stranger, wide)
    table = pq.read_table(stranger / "dropped.parquet")
    for name in ("ensemble_score", "shift_score"):
        at = table.column_names.index(name)
        moved = pc.add(table[name], pa.scalar(5, table.schema.field(name).type))
        table = table.set_column(at, name, moved)
    columns = {name: np.array(table[name]) for name in ("ensemble_score", "shift_score")}
    ranks = Ranks.make(
        json.loads(manifest_of(stranger, "ranks").read_text())["facts"], {"ranks.safetensors": save(wide)}
    )
    again = ranks_of(ranks, columns)
    at = table.column_names.index("largest_deviation_score")
    table = table.set_column(
        at, "largest_deviation_score", pa.array(again, table.schema.field("largest_deviation_score").type)
    )
    pq.write_table(table, stranger / "dropped.parquet")
    assert checks(stranger, source)["scores"].result == "fail"


def ranks_of(ranks, columns):
    scales = [scale_of(fitted) for fitted in ranks.sorted]
    return np.max([(columns[name] - scales[at][0]) / scales[at][1] for at, name in enumerate(ranks.columns)], axis=0)


def test_ranks_of_other_scores_are_found(stranger, source):
    """Sound numbers that are not the source's: the ensemble comes out alike for all rows, and decides nothing."""
    honest = load(next((stranger / "scoring").glob("ranks-*.safetensors")).read_bytes())
    with_ranks(stranger, honest | {"0": np.linspace(50, 60, len(honest["0"]), dtype=np.float32)})
    assert checks(stranger, source)["scores"].result == "fail"
    scoring_of = RecordedScoring.of(Provenance.from_json((stranger / "provenance.json").read_text()))
    with pytest.raises(IntegrityError, match="not those of the source"):
        scoring_of.require_ranks_of(np.tile(np.linspace(0, 1, 30)[:, None], 2), whole=False)
    with pytest.raises(IntegrityError, match="another number of rows"):
        scoring_of.require_ranks_of(np.tile(np.linspace(50, 60, 30)[:, None], 2), whole=True)


def test_the_lowest_scores_alone_cannot_be_moved():
    """Few of them are in a sample, and they say how long a deviation is."""
    rng = np.random.default_rng(1)
    refusals = np.concatenate([rng.normal(-8, 1, 120), rng.normal(size=1880)])  # few, and far below all others
    shapes = [refusals, -rng.lognormal(size=2000), rng.exponential(size=2000), np.round(rng.normal(size=2000), 1)]
    for size in (1, 8, 32, 64):
        for shape in shapes:
            ordered = np.sort(shape).astype(np.float32)
            for _ in range(40):
                assert may_be_scale_of(np.sort(rng.choice(ordered, size, replace=False)), ordered)
    fitted = np.sort(np.concatenate([rng.normal(size=1500), 5 + rng.normal(size=500)])).astype(np.float32)
    sample = np.sort(rng.choice(fitted, 64, replace=False))
    longer, shorter = fitted.copy(), fitted.copy()
    longer[:110] -= 1e6
    shorter[:490] = fitted[490] - np.linspace(1e-3, 0, 490, dtype=np.float32)
    assert not may_be_scale_of(sample, longer) and not may_be_scale_of(sample, shorter)
    assert may_be_scale_of(np.full(9, 3.0), np.full(90, 3.0)) and may_be_scale_of(np.empty(0), fitted)


def test_ranks_of_all_rows_are_their_scores_to_rounding(made, source):
    scoring_of = RecordedScoring.of(Provenance.from_json((made / "provenance.json").read_text()))
    step = next(step for step in scoring_of.steps if hasattr(step, "ranks"))
    own = np.stack(Ranks.of(step.ranks).sorted, axis=1).astype(float)
    scoring_of.require_ranks_of(own[::-1], whole=True)
    own[3, 1] += 4 * scoring_of.tolerances[1]
    with pytest.raises(IntegrityError, match="not those of the source"):
        scoring_of.require_ranks_of(own, whole=True)


def test_a_probe_that_is_not_fitted_as_it_says_is_found(made, source, tmp_path, monkeypatch):
    """The publisher turns it round: what it says of itself stays, and every score is the other way."""
    fitted_at_home = probe_fit.boundaries

    def turned(sets, form="lda", option=0.3):
        found = fitted_at_home(sets, form, option)
        return probe_fit.Boundaries(-found.directions, -found.offsets, found.noise)

    with monkeypatch.context() as patch:
        patch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "liar"))
        patch.setattr(probe_fit, "boundaries", turned)
        fitted._open.cache_clear()
        folder = published(source, tmp_path / "out")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
    fitted._open.cache_clear()
    assert checks(folder, source)["scores"].result == "fail"
    fitted._open.cache_clear()


def test_what_nobody_else_can_make_is_said(stranger, source):
    path = manifest_of(stranger, "probe")
    facts = json.loads(path.read_text())["facts"]
    index = starter_index()
    for change, said in (
        ({"labels": {"count": 3}}, "fitted to labels"),
        ({"counts": facts["counts"] | {"labeled_safe": 2}}, "fitted to labels"),
    ):
        with pytest.raises(MissingError, match=said):
            again._refitted(facts | change, index)
    with pytest.raises(IntegrityError, match="not said in full"):
        again._refitted({name: facts[name] for name in ("layers", "form", "counts")}, index)
    for summary, said in (
        ({"source": "my own"}, "nor the starter set"),
        ({"source": SOURCE}, "does not say which rows"),
        ({"source": SOURCE, "rows": "sha256:0"}, "not the one that was used"),
    ):
        with pytest.raises(MissingError, match=said):
            again._starter(summary, EmbedLayers("toy", [5]))
    shutil.rmtree(stranger / "scoring")
    found = checks(stranger, source)
    assert (found["files"].result, found["scores"].result) == ("fail", "cannot say")


def starter_index():
    return ReferenceIndex.starter(EmbedLayers("toy", [5], position="mean,last_prompt"))


@pytest.mark.parametrize("trait", ["harm", *TRAITS])
def test_the_starter_sets_are_known_by_their_texts(trait):
    embed = EmbedLayers("toy", [1], position="mean,last_prompt")
    assert again.starter_digest(trait) == ReferenceIndex.starter(embed, trait).rows_digest


def test_a_folder_as_the_hub_caches_it_passes_and_a_link_to_elsewhere_is_refused(stranger, source, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(stranger.rglob("*")) if path.is_file()):
        shutil.copy(path, blobs / str(number))
        place = snapshot / path.relative_to(stranger)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blobs / str(number))
    assert {line.result for line in checks(snapshot, source).values()} == {"pass"}
    elsewhere = shutil.copy(manifest_of(stranger, "probe"), tmp_path / "elsewhere.json")
    manifest_of(snapshot, "probe").unlink()
    name = manifest_of(stranger, "probe").name
    (snapshot / "scoring" / name).symlink_to(elsewhere)
    fitted._open.cache_clear()
    with pytest.raises(IntegrityError, match="outside the folder"):
        scoring.facts_of_probe(snapshot, json.loads((snapshot / "provenance.json").read_text())["steps"][1]["probe"])


@pytest.mark.parametrize(
    "model",
    [
        "https://user:hunter22@host/m",
        "models/mine",
        "C:\\Users\\maria\\m",
        "file:///home/maria/m",
        "~/m",
        "/home/maria/m",
    ],
)
def test_places_of_the_publisher_are_not_published(model):
    facts = {"embed": {"model": model, "revision": "sha256:0"}, "layers": [1]}
    assert not scoring._may_be_shown(facts)
    assert scoring._may_be_shown({"embed": {"model": "org/model", "revision": "0" * 40}, "layers": [1]})


def test_a_path_of_the_publisher_is_not_published(source, tmp_path):
    model = shutil.copytree(toy_model_path(), tmp_path / "models" / "mine")
    folder = published(source, tmp_path / "out", str(model))
    assert not [path for path in folder.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]
    assert {path.name.partition("-")[0] for path in scoring_files(folder)} == {"ranks"}
