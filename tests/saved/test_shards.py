"""Many machines, one data set: shards in any order, more than once, one by one give what one run gives, or an error."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from processes import HANG, answer, start, wait_until

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.load_rows import Loaded, load_rows
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.engine.local import embed_rows
from hf_safefilter.engine.local_processes import embed_in_processes
from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError, SafefilterError
from hf_safefilter.saved.saved_rows import TRAIL, Trail, save_rows
from hf_safefilter.saved.shards import Shard, embed_shard, merge
from hf_safefilter.storage.recorded_files import record_files
from hf_safefilter.toy.corpus import mixed_rows

COUNT = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(50, 0.2, 3)))
    return path


@pytest.fixture(scope="module")
def step():
    return EmbedLayers("toy", layers=[2, 4], device="cpu")


@pytest.fixture(scope="module")
def made(source, step, tmp_path_factory):
    """Four shards, made in no order."""
    output = tmp_path_factory.mktemp("shards")
    for index in (2, 0, 3, 1):
        embed_shard(load_rows(source), step, output, Shard(index, COUNT), embed_rows)
    return output


@pytest.fixture
def shards(made, tmp_path):
    """A copy to do harm to."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


def at(output, index, count=COUNT):
    return Shard(index, count).folder(output)


def same_rows(one, other):
    assert one.column_names == other.column_names and one.features == other.features
    for name in one.column_names:
        if name.startswith("emb_layer_"):
            ours, theirs = (Batch(rows.with_format("arrow")[:]).vectors(name) for rows in (one, other))
            assert ours.offsets.tolist() == theirs.offsets.tolist()
            np.testing.assert_allclose(ours.values, theirs.values, rtol=2e-3, atol=2e-3)
        else:
            assert one[name][:] == other[name][:]


def test_merged_shards_are_the_run_over_all_rows(source, step, made, tmp_path):
    loaded = load_rows(source)
    save_rows(embed_rows(loaded.rows, step), tmp_path / "whole", [step], name=loaded.name, revision=loaded.revision)
    done = merge([made], tmp_path / "merged")
    assert (done.shards, done.rows) == (4, 50)
    assert (tmp_path / "merged" / TRAIL).read_bytes() == (tmp_path / "whole" / TRAIL).read_bytes()
    same_rows(load_from_disk(tmp_path / "merged"), load_from_disk(tmp_path / "whole"))


def test_the_order_in_which_they_are_named_is_nothing(made, tmp_path):
    merge([at(made, index) for index in (3, 1, 0, 2)], tmp_path / "one")
    merge([made], tmp_path / "other")
    assert load_from_disk(tmp_path / "one").to_dict() == load_from_disk(tmp_path / "other").to_dict()


@pytest.mark.parametrize(("rows", "count"), [(10, 3), (3, 5), (1, 2), (7, 7), (8, 1)])
def test_every_row_is_in_one_shard(rows, count):
    table = Dataset.from_dict({"n": list(range(rows))})
    parts = [Shard(index, count).of(table)["n"][:] for index in range(count)]
    assert [n for part in parts for n in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_splits_and_more_shards_than_rows(step, tmp_path):
    rows = Dataset.from_list(mixed_rows(9, 0.2, 3))
    both = DatasetDict(train=rows.select(range(7)), test=rows.select(range(7, 9)))
    loaded = Loaded(both, "rows", "sha256:0")
    for index in range(5):
        embed_shard(loaded, step, tmp_path / "shards", Shard(index, 5), embed_rows)
    assert merge([tmp_path / "shards"], tmp_path / "merged").rows == 9
    whole, merged = embed_rows(both, step), load_from_disk(tmp_path / "merged")
    assert list(merged) == list(whole)
    for split in whole:
        same_rows(merged[split], whole[split])


# Asked for twice, or not as before


def test_a_shard_that_is_there_is_not_made_again(source, step, shards):
    def refuse(rows, embed):
        raise AssertionError("it was made again")

    before = (at(shards, 1) / TRAIL).stat().st_mtime_ns
    assert embed_shard(load_rows(source), step, shards, Shard(1, COUNT), refuse) == (at(shards, 1), True)
    assert (at(shards, 1) / TRAIL).stat().st_mtime_ns == before


def test_a_shard_under_the_name_of_another_is_made_anew(source, step, tmp_path):
    folder, _ = embed_shard(load_rows(source), step, tmp_path, Shard(0, 2), embed_rows)
    shutil.copytree(folder, at(tmp_path, 1, 2))
    again, done = embed_shard(load_rows(source), step, tmp_path, Shard(1, 2), embed_rows)
    assert not done and Trail.verified(again).shard["index"] == 1


def test_a_shard_that_names_rows_elsewhere_is_not_merged_whoever_is_trusted(source, step, tmp_path, monkeypatch):
    folder, _ = embed_shard(load_rows(source), step, tmp_path / "shards", Shard(0, 1), embed_rows)
    state = json.loads((folder / "state.json").read_text())
    (tmp_path / "elsewhere.arrow").write_bytes((folder / state["_data_files"][0]["filename"]).read_bytes())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "../../elsewhere.arrow"}]}))
    record_files(folder, TRAIL)
    with pytest.raises(SafefilterError, match="elsewhere|outside|not a plain"):
        merge([tmp_path / "shards"], tmp_path / "merged", trust_vectors=True)


def test_two_who_make_the_same_shard_at_once_both_end_well(source, step, tmp_path):
    """While the first is at work, the second comes, is faster, and lies where the first wants to write."""

    def late(rows, embed):
        assert embed_shard(load_rows(source), step, tmp_path, Shard(0, 2), embed_rows) == (at(tmp_path, 0, 2), False)
        return embed_rows(rows, embed)

    folder, _ = embed_shard(load_rows(source), step, tmp_path, Shard(0, 2), late)
    assert len(load_from_disk(folder)) == 25
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_slower_of_two_may_find_the_place_taken(source, step, tmp_path, monkeypatch):
    from hf_safefilter.saved import saved_rows as trail

    save = trail.Trail.save

    def taken(self, *words, **options):
        save(self, *words, **options)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(trail.Trail, "save", taken)
    assert embed_shard(load_rows(source), step, tmp_path, Shard(0, 2), embed_rows) == (at(tmp_path, 0, 2), True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trail.Trail, "save", full)
    with pytest.raises(OSError, match="No space"):
        embed_shard(load_rows(source), step, tmp_path, Shard(1, 2), embed_rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 8}, "another number of shards"),
        ({"layers": [3]}, "another layers"),
        ({"position": "last_prompt"}, "another position"),
        ({"rows": 40}, "another data set"),
    ],
)
def test_a_shard_that_would_not_fit_the_others_is_refused_before_it_is_made(source, shards, tmp_path, change, says):
    other = tmp_path / "rows.jsonl"
    other.write_text("".join(source.read_text().splitlines(keepends=True)[: change.get("rows", 50)]))
    step = EmbedLayers("toy", layers=change.get("layers", [2, 4]), position=change.get("position", "last"))
    shutil.rmtree(at(shards, 0))
    with pytest.raises(OptionError, match=says):
        embed_shard(
            load_rows(other), step, shards, Shard(0, change.get("count", COUNT)), lambda *_: pytest.fail("made")
        )


def test_a_place_that_is_taken_is_refused_before_anything_is_embedded(source, step, tmp_path):
    (at(tmp_path, 0) / "mine").mkdir(parents=True)
    with pytest.raises(OptionError, match="holds other files"):
        embed_shard(load_rows(source), step, tmp_path, Shard(0, COUNT), lambda *_: pytest.fail("embedded"))
    assert (at(tmp_path, 0) / "mine").exists()


@pytest.mark.parametrize("numbers", [(-1, 4), (4, 4), (0, 0), (0, -2)])
def test_there_is_no_such_shard(numbers):
    with pytest.raises(OptionError, match="counted from 0"):
        Shard(*numbers)


# What merge refuses


def test_a_missing_shard_is_named_with_the_command_that_makes_it(shards, tmp_path):
    shutil.rmtree(at(shards, 2))
    with pytest.raises(MissingError, match="1 of 4 shards are missing") as error:
        merge([shards], tmp_path / "merged")
    assert error.value.found == "missing: 2" and "--shard 2 --num-shards 4" in error.value.fix
    assert not (tmp_path / "merged").exists()


def test_a_shard_given_twice(shards, tmp_path):
    shutil.copytree(at(shards, 1), tmp_path / "copy")
    with pytest.raises(DataError, match="shard 1 was given twice"):
        merge([shards, tmp_path / "copy"], tmp_path / "merged")
    assert merge([shards, at(shards, 1)], tmp_path / "merged").rows == 50, "the same folder named twice is one shard"


@pytest.mark.parametrize(
    ("options", "count", "says"),
    [({"layers": [2, 4]}, 2, "number of shards"), ({"layers": [2]}, 4, "layers"), ({"dtype": "bfloat16"}, 4, "dtype")],
)
def test_shards_of_different_runs(source, shards, tmp_path, options, count, says):
    other = EmbedLayers("toy", **({"layers": [2, 4]} | options))
    folder, _ = embed_shard(load_rows(source), other, tmp_path / "other", Shard(0, count), embed_rows)
    with pytest.raises(DataError, match=f"more than one {says}"):
        merge([*(at(shards, index) for index in (1, 2, 3)), folder], tmp_path / "merged")


def test_shards_may_be_made_on_other_devices(source, step, shards, tmp_path):
    shutil.rmtree(at(shards, 0))
    assert step.device == "cpu"
    embed_shard(load_rows(source), EmbedLayers("toy", layers=[2, 4]), shards, Shard(0, COUNT), embed_rows)
    assert merge([shards], tmp_path / "merged").rows == 50


def test_a_model_changed_between_shards(source, tmp_path):
    from small_models import save_small_model

    for index in range(2):
        model = save_small_model(tmp_path / f"model{index}", seed=index)
        shard = Shard(index, 2)
        embed_shard(load_rows(source), EmbedLayers(str(model), layers=[1]), tmp_path / str(index), shard, embed_rows)
    folders = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(DataError, match="more than one (model|revision)"):
        merge(folders, tmp_path / "merged")


@pytest.mark.parametrize("harm", ["cut", "gone", "rows", "trail"])
def test_a_damaged_shard_is_noticed_and_made_again(source, step, shards, tmp_path, harm):
    folder = at(shards, 3)
    data = next(folder.glob("*.arrow"))
    if harm == "cut":
        data.write_bytes(data.read_bytes()[:-2000])
    elif harm == "gone":
        data.unlink()
    elif harm == "rows":
        trail = (folder / TRAIL).read_text()
        shutil.rmtree(folder)
        load_from_disk(at(shards, 0)).select(range(5)).save_to_disk(folder)
        (folder / TRAIL).write_text(trail)
    else:
        (folder / TRAIL).write_text("{")
    with pytest.raises(IntegrityError, match="damaged|not written by this user"):
        merge([shards], tmp_path / "merged")
    assert embed_shard(load_rows(source), step, shards, Shard(1, COUNT), embed_rows) == (at(shards, 1), True)
    assert embed_shard(load_rows(source), step, shards, Shard(3, COUNT), embed_rows) == (folder, False)
    assert merge([shards], tmp_path / "merged").rows == 50


def reworded(folder):
    """Exchange a word in all rows of a shard; the trail and all other columns stay."""
    rows = load_from_disk(folder)
    (file,) = folder.glob("*.arrow")
    changed = rows.map(lambda row: {"response": "poison"}, features=rows.features, keep_in_memory=True)
    changed.save_to_disk(folder.with_name("changed"))
    shutil.copyfile(next(folder.with_name("changed").glob("*.arrow")), file)
    shutil.rmtree(folder.with_name("changed"))


@pytest.mark.parametrize("signed", [False, True])
def test_a_shard_with_other_words_is_refused_and_made_again(source, step, shards, tmp_path, monkeypatch, signed):
    reworded(at(shards, 2))
    if signed:  # by somebody else
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
            record_files(at(shards, 2), TRAIL)
    with pytest.raises(IntegrityError, match="not written by this user" if signed else "arrow was altered"):
        merge([shards], tmp_path / "merged")
    assert embed_shard(load_rows(source), step, shards, Shard(2, COUNT), embed_rows) == (at(shards, 2), False)
    assert merge([shards], tmp_path / "merged").rows == 50
    assert "poison" not in load_from_disk(tmp_path / "merged")["response"]


def test_shards_of_another_machine_are_merged_if_trusted_and_stay_marked(shards, tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
        record_files(at(shards, 1), TRAIL)
    assert merge([shards], tmp_path / "merged", trust_vectors=True).rows == 50
    assert Trail.verified(tmp_path / "merged").trusted


def test_what_is_no_shard(source, step, shards, tmp_path):
    loaded = load_rows(source)
    save_rows(embed_rows(loaded.rows, step), tmp_path / "whole", [step], name=loaded.name, revision=loaded.revision)
    with pytest.raises(DataError, match="is no shard"):
        merge([tmp_path / "whole"], tmp_path / "merged")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="holds no shards"):
        merge([tmp_path / "empty"], tmp_path / "merged")
    with pytest.raises(OptionError, match="one of the shards"):
        merge([shards], at(shards, 0))
    assert len(load_from_disk(at(shards, 0))) == 13


# Several processes on one machine

SPREAD = """
import json, os, sys, time
from hf_safefilter.cli import main
from hf_safefilter.embed import EmbedLayers

calls, compute = [], EmbedLayers.compute
def compute_and_wait(step, *batch):
    calls.append(1)
    while "WAIT" in os.environ and len(calls) == 2:  # a worker that has finished one call waits to be killed
        time.sleep(60)
    return compute(step, *batch)
EmbedLayers.compute = compute_and_wait

if __name__ == "__main__":
    options = ["--model", "toy", "--layers", "2,4", "--num-proc", "2"]
    sys.argv = ["hf-safefilter", "--format", "json", "embed", {rows!r}, "-o", {output!r}, *options]
    main()
"""


def spread(tmp_path, source, output, number=0, **environment):
    script = tmp_path / "spread.py"
    script.write_text(SPREAD.format(rows=str(source), output=str(output)))
    runs = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    cache = {"HF_DATASETS_CACHE": str(tmp_path / f"datasets{number}")}
    return start(
        runs, HF_SAFEFILTER_ROW_CACHE="on", HF_SAFEFILTER_CACHE=str(tmp_path / "store"), **cache, **environment
    )


def test_spawned_processes_give_what_one_gives(source, step, tmp_path):
    assert answer(spread(tmp_path, source, tmp_path / "embedded"))["rows"] == 50
    same_rows(load_from_disk(tmp_path / "embedded"), embed_rows(load_rows(source).rows, step))
    assert not list((tmp_path / "datasets0").rglob("cache-*")), "what was derived is deleted with the process"


def test_a_killed_worker_is_said_and_the_same_command_goes_on(tmp_path):
    """Rows enough for two calls a worker; the kill comes once the rows of the first are in the row cache."""
    source = tmp_path / "many.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(3000, 0.2, 3)))
    job = spread(tmp_path, source, tmp_path / "embedded", WAIT="yes")
    wait_until(lambda: len(list((tmp_path / "store").rglob("*.arrow"))) >= 2, job)
    os.kill(_worker_of(job.pid), signal.SIGKILL)
    _, err = job.communicate(timeout=HANG)
    assert job.returncode == 1 and "a worker process was killed" in err and "it continues from here" in err
    assert not (tmp_path / "embedded").exists()
    assert answer(spread(tmp_path, source, tmp_path / "embedded", 1))["rows"] == 3000


def _worker_of(parent):
    """A process of the pool: the pool is spawned first, then the manager of its queue."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("the system does not list the children of a process")
    spawned = [
        int(child)
        for child in children.read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return min(spawned)


def test_no_processes(step):
    with pytest.raises(OptionError, match="num_proc=0"):
        embed_in_processes(Dataset.from_list(mixed_rows(2, 0.5, 1)), step, 0)


def test_an_error_of_a_worker_stays_what_it_is(step, monkeypatch):
    rows = Dataset.from_list(mixed_rows(4, 0.5, 1))

    def fail(self, *_, **__):
        raise RuntimeError("a stone in the gears")

    monkeypatch.setattr(Dataset, "map", fail)
    with pytest.raises(RuntimeError, match="a stone") as error:
        embed_in_processes(rows, step, 2)
    assert not isinstance(error.value, SafefilterError)


def test_the_start_method_and_the_threads_are_as_before(step, monkeypatch):
    import multiprocess

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    seen = []

    def look(rows, *_, **__):
        seen.append((multiprocess.get_start_method(), os.environ["OMP_NUM_THREADS"]))
        return rows.rename_columns({name: f"{name}_too" for name in rows.column_names})

    monkeypatch.setattr(Dataset, "map", look)
    before = multiprocess.get_start_method()
    embed_in_processes(Dataset.from_list(mixed_rows(4, 0.5, 1)), step, 2)
    assert seen == [("spawn", "3")]
    assert multiprocess.get_start_method() == before and "OMP_NUM_THREADS" not in os.environ
