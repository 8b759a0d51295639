"""Ray Data as the place where rows are embedded and scored: a real local Ray, killed workers, streams, the shell."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from mixed_shapes import mixed_shapes
from processes import HANG
from ray_steps import Deadly, RowIds
from typer.testing import CliRunner

import hf_safefilter as sf
from hf_safefilter.cli import app
from hf_safefilter.engine import ray as engine_of_ray
from hf_safefilter.engine import ray_session as session_of_ray
from hf_safefilter.engine.ordered import Piece, Sample, cut, in_order, some_rows
from hf_safefilter.engine.second_pass import reread_kept
from hf_safefilter.engine.streamed import score_stream
from hf_safefilter.errors import DataError, MissingError, OptionError, PublishError, SafefilterError
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.step import ROWS_PER_CALL
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "hf_safefilter[ray]"')
pytestmark = pytest.mark.xdist_group("ray")

TESTS = Path(__file__).parents[1]
FACTS = {"license": "cc0-1.0", "source": "a test"}
LAYER = 2


@pytest.fixture(scope="module", autouse=True)
def session():
    """One Ray for the whole file, of two processors; one thread here and there, as two round differently."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        torch.set_num_threads(1)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    mixed = mixed_rows(2 * ROWS_PER_CALL + 100, 0.05)
    mixed[7]["response"] = ""
    return mixed


@pytest.fixture(scope="module")
def files(tmp_path_factory, rows) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    unsafe, safe = reference_rows(12, 3)
    for name, listed in {"rows": rows, "unsafe": unsafe, "safe": safe}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return {name: str(folder / f"{name}.jsonl") for name in ("rows", "unsafe", "safe")}


@pytest.fixture(scope="module")
def recipe(files) -> dict:
    return {
        "data": {"path": files["rows"], **FACTS},
        "model": {"name": "toy"},
        "references": {"unsafe": files["unsafe"], "safe": files["safe"], "benign": None, **FACTS},
        "layer": LAYER,
        "methods": ["larf", {"name": "nearest", "options": {"k": 2}}],
        "select": {"by": "nearest", "drop_count": 100},
        "evaluate": {"label": "label"},
    }


@pytest.fixture(scope="module")
def plain(recipe):
    return purify(None, recipe)


@pytest.fixture(scope="module")
def steps(files) -> list:
    embed = sf.EmbedLayers("toy", [LAYER])
    unsafe, safe = ([json.loads(line) for line in Path(files[name]).open()] for name in ("unsafe", "safe"))
    return [embed, sf.LarfScore(sf.ReferenceIndex.build(unsafe, safe, embed, **FACTS), LAYER)]


def same(one: Dataset, other: Dataset, names=None) -> bool:
    """Whether columns are equal; floats to rounding, as rows of another batch may round otherwise."""
    left, right = (ds.with_format("arrow")[:] for ds in (one, other))
    return all(same_column(left[name], right[name]) for name in names or one.column_names)


def same_column(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    if left.type != right.type or len(left) != len(right):
        return False
    one, other = left.combine_chunks(), right.combine_chunks()
    while hasattr(one.type, "value_type"):
        if not pc.list_value_length(one).equals(pc.list_value_length(other)):
            return False
        one, other = one.flatten(), other.flatten()
    if not pa.types.is_floating(one.type):
        return one.to_pylist() == other.to_pylist()
    numbers = [array.to_numpy(zero_copy_only=False).astype(np.float64) for array in (one, other)]
    return np.allclose(*numbers, rtol=1e-2, atol=1e-3, equal_nan=True)


def in_row_order(table: pa.Table, ids: list[str]) -> pa.Table:
    index = {row_id: number for number, row_id in enumerate(ids)}
    return table.take(np.argsort([index[row_id] for row_id in table["row_id"].to_pylist()]))


def test_steps_go_into_map_batches_as_they_are_as_tasks_and_in_actors(rows, steps, plain):
    own = ray.data.from_arrow([pa.Table.from_pylist(rows[:300]), pa.Table.from_pylist(rows[300:500])])
    done = own.map_batches(steps[0], batch_format="pyarrow").map_batches(
        engine_of_ray.StepActor, batch_format="pyarrow", batch_size=128,
        fn_constructor_args=(steps[1],), compute=ray.data.ActorPoolStrategy(size=1),
    )  # fmt: skip
    table = pa.concat_tables(ray.get(done.to_arrow_refs()))
    whole = plain.scored.select(range(500)).with_format("arrow")[:]
    assert sorted(table["row_id"].to_pylist()) == sorted(whole["row_id"].to_pylist())
    table = in_row_order(table, whole["row_id"].to_pylist())
    names = [*rows[0], *steps[0].produces(), *steps[1].produces()]
    assert Dataset(table).features == {name: plain.scored.features[name] for name in names}
    assert np.allclose(table["larf_score"].to_numpy(), whole["larf_score"].to_numpy(), atol=2e-3, equal_nan=True)


def test_an_actor_killed_in_the_middle_costs_no_row_and_changes_no_bit(rows, steps, plain, tmp_path):
    (tmp_path / "deaths").mkdir()
    deadly = Deadly(str(tmp_path / "deaths"), rows[ROWS_PER_CALL + 9]["prompt"])
    done = sf.RayEngine(actors=2).add(Dataset.from_list(rows), [steps[0], deadly, steps[1]])
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    names = ["prompt", *steps[0].produces(), *steps[1].produces()]
    assert same(done, plain.scored, names)
    assert {name: done.features[name] for name in names} == {name: plain.scored.features[name] for name in names}
    assert sorted(set(done["batch_size"][:])) == [100, ROWS_PER_CALL]
    assert np.isnan(done["larf_score"][7]) and done["unscorable"][7] == "empty_response"
    assert done.column_names == [*rows[0], *steps[0].produces(), "batch_size", *steps[1].produces()]


def test_an_actor_that_dies_again_and_again_ends_the_run_in_words(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_of_ray, "_DEATHS", 1)
    (tmp_path / "deaths").mkdir()
    with pytest.raises(SafefilterError, match="died again and again"):
        sf.RayEngine().add(Dataset.from_list(rows[:8]), [Deadly(str(tmp_path / "deaths"), rows[3]["prompt"], 99)])


def test_the_command_keeps_and_drops_what_the_plain_way_does(recipe, plain, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    options = ["--output", str(tmp_path / "ray"), "--engine", "ray", "--actors", "1"]
    said = CliRunner().invoke(app, ["--format", "json", "run", str(tmp_path / "recipe.yaml"), *options])
    assert said.exit_code == 0, said.output
    write_folder(tmp_path / "plain", plain.scored, plain.is_safe, plain.provenance)
    drawn = re.compile(r'largest[_ ]difference"?:? [-+.\de]+')  # of the rows that are read again, others each time
    for name in ("provenance.json", "README.md"):
        ours, theirs = (drawn.sub("", (tmp_path / out / name).read_text()) for out in ("ray", "plain"))
        assert ours == theirs
    for name in ("dropped.parquet", "data/train-00000-of-00001.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.fixture(scope="module")
def streamed(recipe, files):
    data = {"path": files["rows"], "streaming": True, **FACTS}
    return purify(None, recipe | {"data": data}, engine=sf.RayEngine())


def test_a_stream_is_decided_alike_and_only_ids_scores_and_reasons_are_kept(streamed, plain, rows):
    assert streamed.counts == plain.counts
    assert streamed.is_safe.threshold == pytest.approx(plain.is_safe.threshold, abs=1e-4)
    assert {"prompt", "response", f"emb_layer_{LAYER}"}.isdisjoint(streamed.scored.column_names)
    assert same(streamed.scored, plain.scored, ["row_id", "truncated", "unscorable", "larf_score", "nearest_score"])
    assert isinstance(streamed.kept, IterableDataset)
    kept = list(streamed.kept)
    assert [row["prompt"] for row in kept] == plain.kept["prompt"][:]
    assert [row["nearest_unsafe"] for row in kept] == plain.kept["nearest_unsafe"][:]
    ours, theirs = (rounded(one.provenance.to_dict()) for one in (streamed, plain))
    assert ours.pop("recipe") | {"data": None} == theirs.pop("recipe") | {"data": None}
    assert ours == theirs
    assert streamed.provenance.check.rows == 8


def rounded(value):
    """A record with its floats to rounding: rows of another batch may round otherwise, and so may what follows."""
    if isinstance(value, dict):
        return {
            name: rounded(inner)
            for name, inner in value.items()
            if name not in ("threshold_hex", "largest_difference", "tolerance", "rule")
        }
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


def test_the_second_reading_writes_the_kept_rows(streamed, plain, tmp_path):
    write_folder(tmp_path / "ray", streamed.scored, streamed.is_safe, streamed.provenance, kept=streamed.kept)
    write_folder(tmp_path / "plain", plain.scored, plain.is_safe, plain.provenance)
    one, other = (load_dataset(str(tmp_path / name), split="train") for name in ("ray", "plain"))
    assert one.features == other.features and same(one, other)
    assert same(*(Dataset(pq.read_table(tmp_path / name / "dropped.parquet")) for name in ("ray", "plain")))
    with pytest.raises(OptionError, match="dropped rows of a stream are not stored"):
        write_folder(tmp_path / "text", streamed.scored, streamed.is_safe, streamed.provenance, kept=streamed.kept,
                     include_text=True)  # fmt: skip
    with pytest.raises(PublishError, match="the stream gave"):
        write_folder(tmp_path / "few", streamed.scored, streamed.is_safe, streamed.provenance,
                     kept=streamed.kept.take(5))  # fmt: skip


def test_the_kept_rows_are_written_to_several_shards(streamed, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_safefilter.publish.data_files._SHARD_BYTES", 1)
    monkeypatch.setattr("hf_safefilter.publish.stream_writer._ROWS", 700)
    write_folder(tmp_path / "out", streamed.scored, streamed.is_safe, streamed.provenance, kept=streamed.kept)
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    assert load_dataset(str(tmp_path / "out"), split="train")["prompt"][:] == plain.kept["prompt"][:]


def test_a_stream_that_reads_other_rows_the_second_time_is_refused(streamed, rows):
    other = [*rows[:5], {**rows[5], "response": "Something else."}, *rows[6:]]
    for changed, index in ((other, 5), ([*rows, rows[0]], len(rows)), (rows[:1500], 1500), (rows[:1024], 1024)):
        stream = Dataset.from_list(changed).to_iterable_dataset()
        kept = reread_kept(stream, streamed.scored, streamed.is_safe, ["nearest_score"])
        with pytest.raises(DataError, match=f"row {index} of the stream"):
            list(kept)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_several_shapes_are_decided_as_without_ray(recipe, tmp_path, streaming):
    mixed = mixed_shapes(80, 0.1, 3)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    local = recipe | {
        "data": {"path": str(tmp_path / "rows.jsonl"), **FACTS},
        "select": {"by": "larf", "drop_count": 9},
    }
    other = local | {"data": local["data"] | {"streaming": streaming}}
    one, two = purify(None, local), purify(None, other, engine=sf.RayEngine())
    names = ["row_id", "truncated", "unscorable", "spans", "larf_score", "nearest_score"]
    assert same(two.scored, one.scored, names) and two.counts == one.counts
    for name, done in (("local", one), ("ray", two)):
        write_folder(tmp_path / name, done.scored, done.is_safe, done.provenance, kept=done.kept)
    back = [load_dataset(str(tmp_path / name), split="train") for name in ("local", "ray")]
    assert back[0].features == back[1].features and back[0].to_list() == back[1].to_list()
    assert len(back[0]) == 71


def test_splits_of_a_stream_are_decided_together_and_kept_apart(rows):
    parts = {"train": rows[:30], "test": rows[30:50]}
    stream = IterableDatasetDict({name: Dataset.from_list(part).to_iterable_dataset() for name, part in parts.items()})
    steps = [RowIds(), LengthScore()]
    scores = score_stream(sf.RayEngine(), stream, steps, labels=["label", None])
    assert isinstance(scores.scored, DatasetDict)
    assert scores.scored["test"].column_names == ["row_id", "length_score", "random_score", "label", "category"]
    assert scores.scored["test"]["label"][:] == [row["label"] for row in parts["test"]]
    (first, _), (second, indices) = scores.samples()
    assert first.column_names == list(rows[0]) and indices[-1] == 49
    assert second[-1] == parts["test"][-1]
    kept = scores.kept(scores.scored, sf.IsSafe("length_score", 60.0), steps)
    short = [row["prompt"] for row in parts["test"] if len(row["response"]) < 60]
    assert [row["prompt"] for row in kept["test"]] == short and 0 < len(short) < 20


def test_nothing_to_read_and_rows_of_no_known_shape(rows):
    with pytest.raises(DataError, match="no rows"):
        sf.RayEngine().columns(IterableDataset.from_generator(lambda: iter(())), [RowIds()], ["row_id"])
    with pytest.raises(DataError, match="no known shape"):
        sf.RayEngine().add(Dataset.from_list([{"a": "b"}]), [RowIds()])


def test_a_column_of_the_users_is_never_written_over(recipe, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "row_id": "mine"}) + "\n" for row in rows[:9]))
    for streaming in (False, True):  # a stream of JSON does not say what columns it has
        data = {"path": str(tmp_path / "rows.jsonl"), "streaming": streaming, **FACTS}
        with pytest.raises(DataError, match="already have a column 'row_id'"):
            purify(None, recipe | {"data": data, "evaluate": None}, engine=sf.RayEngine())


def test_a_method_fitted_to_the_rows_gets_their_vectors_and_cannot_stream(recipe, rows):
    few = Dataset.from_list(rows[:64])
    saft = recipe | {"methods": ["saft"], "select": {"drop_count": 5}}
    done = purify(few, saft, engine=sf.RayEngine())
    assert done.kept["row_id"][:] == purify(few, saft).kept["row_id"][:]
    with pytest.raises(OptionError, match="while they are streamed"):
        purify(few.to_iterable_dataset(), saft, engine=sf.RayEngine())


def test_pieces_come_back_in_order_once_and_all():
    table = pa.table({"x": range(3000)})
    pieces = list(cut(Dataset(table)))
    assert [(piece.start, piece.last, piece.table.num_rows) for piece in pieces] == [
        (0, False, 1024), (1024, False, 1024), (2048, True, 952)]  # fmt: skip
    mixed = [pieces[2], pieces[0], pieces[1]]
    assert pa.concat_tables(in_order(mixed))["x"].to_pylist() == list(range(3000))
    for wrong, words in (
        (pieces[:2], "from 2048 on are missing"),
        (pieces[1:], "from 0 on are missing"),
        ([*pieces, pieces[1]], "from 1024 on came twice"),
        ([pieces[2], pieces[2]], "from 2048 on came twice"),
    ):
        with pytest.raises(SafefilterError, match=words):
            list(in_order(wrong))
    with pytest.raises(DataError, match="no rows"):
        list(in_order([]))


def test_the_sample_is_spread_and_does_not_depend_on_the_order_of_arrival():
    pieces = [Piece(at * ROWS_PER_CALL, False, pa.table({"x": range(at * 1024, at * 1024 + 1024)})) for at in range(50)]
    samples = []
    for order in (pieces, pieces[::-1], pieces[::2] + pieces[1::2]):
        sample = Sample()
        for piece in order:
            sample.offer(piece.start, *some_rows(piece.table))
        samples.append(sample.with_columns(Dataset.from_dict({})))
    assert samples[0].indices == samples[1].indices == samples[2].indices == samples[0].sample["x"][:]
    assert len(samples[0].indices) == 13 * 8 and samples[0].indices[-1] == 48 * 1024 + 1023
    assert some_rows(pa.table({"x": [5]}))[0] == [0]


def test_without_ray_the_error_names_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingError, match=r'pip install "hf_safefilter\[ray\]"'):
        sf.RayEngine()
    (tmp_path / "recipe.yaml").write_text(sf.recipe.EXAMPLE)
    said = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "o"), "--engine", "ray"])
    assert isinstance(said.exception, MissingError) or "pip install" in said.output


@pytest.mark.parametrize("options", [{"actors": 0}, {"cpus_per_actor": 0}, {"gpus_per_actor": -1}])
def test_a_pool_that_cannot_be_is_refused(options):
    with pytest.raises(OptionError):
        sf.RayEngine(**options)


@pytest.mark.parametrize("options", [["--engine", "spark"], ["--actors", "2"], ["--gpus-per-actor", "1"]])
def test_the_command_refuses_what_makes_no_sense(recipe, tmp_path, options):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    said = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "out"), *options])
    assert said.exit_code != 0 and not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_named(rows, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", no_cluster)
    with pytest.raises(SafefilterError, match="check RAY_ADDRESS"):
        sf.RayEngine().add(Dataset.from_list(rows[:2]), [RowIds()])
    assert ray.data.DataContext.get_current().target_max_block_size > 1


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://localhost:{}"])
def test_an_address_where_nobody_listens_is_named_at_once(rows, monkeypatch, address):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(port))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray went to look for it"))
    with pytest.raises(SafefilterError, match="no server answers") as error:
        sf.RayEngine().add(Dataset.from_list(rows[:2]), [RowIds()])
    assert "check RAY_ADDRESS" in error.value.fix


def test_no_room_for_an_actor_is_said_and_not_waited_for(rows, monkeypatch, caplog):
    for wants in ({"gpus_per_actor": 99}, {"cpus_per_actor": 99}):
        with pytest.raises(OptionError, match="no room for an actor") as error:
            sf.RayEngine(**wants).add(Dataset.from_list(rows[:2]), [RowIds()])
        assert "at most 2 CPUs" in error.value.found
    monkeypatch.setenv("RAY_ADDRESS", "a cluster, which may grow")
    session_of_ray._require_room(ray, 1, 99)
    assert "waiting for the cluster to grow" in caplog.text


def no_cluster(address, **_):
    raise ConnectionError(f"Could not find any running Ray instance at {address}")


def test_the_example_starts_ray_and_stops_it_and_is_quiet(files, tmp_path):
    example = TESTS.parent / "examples" / "ray_cluster.py"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(example), files["unsafe"], str(tmp_path / "out")],
        env=environment, capture_output=True, text=True, timeout=HANG, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"11 of 12 rows kept: {tmp_path / 'out'}\n"
    assert "WARNING" not in done.stderr and "Traceback" not in done.stderr
    assert load_dataset(str(tmp_path / "out"), split="train").num_rows == 11
