"""What is known is looked up, what is not is read once; nothing else may be seen from outside."""

import hashlib
import importlib
import os

import numpy as np
import pytest

from hf_safefilter import cache
from hf_safefilter.cache import Gathering, RowVectors, Space, part
from hf_safefilter.cache import store as stores
from hf_safefilter.cache.pace import Pace
from hf_safefilter.cache.row_index import UNKNOWN, RowIndex
from hf_safefilter.cache.store import LayerStore
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.spans import SPAN

WIDTH = 8
SPACE = Space.of({"model": "made up"}, "made up")


def name(row):
    return hashlib.sha256(str(row).encode()).hexdigest()[:32]


def spans_in(row):
    """What of a row is read: one to three spans, none of a row that is too long."""
    count = 0 if row % 10 == 0 else 1 + row % 3
    return np.array([(2 * turn + 1, turn == 2, row, row + turn + 1) for turn in range(count)], SPAN)


def truth(row, layer):
    """The vectors of a row: what a model would say."""
    return np.random.default_rng([row, layer]).normal(size=(len(spans_in(row)), WIDTH)).astype(np.float16)


class Model:
    """Reads rows given as numbers; keeps account of what it was asked. Rows divisible by 10 are too long."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __call__(self, at, layers):
        rows = [self.rows[one] for one in at]
        self.asked += [(row, layer) for row in rows for layer in layers]
        spans = Ragged.of([spans_in(row) for row in rows], np.empty(0, SPAN))
        vectors = {layer: np.concatenate([np.empty((0, WIDTH), np.float16), *(truth(row, layer) for row in rows)])
                   for layer in layers}  # fmt: skip
        truncated = np.array([row % 7 == 0 for row in rows], dtype=bool)
        reasons = np.array(["too_long" if row % 10 == 0 else "" for row in rows], dtype=object)
        return RowVectors(spans.offsets, spans.values, vectors, truncated, reasons)


def gathering(reasons, layers=(1,)):
    return Gathering(reasons, dict.fromkeys(layers, WIDTH))


def recall(rows, layers=(1,), space=SPACE, reasons=None):
    model = Model(rows)
    target = gathering(reasons or [""] * len(rows), layers)
    reading = cache.recall(space, target, [name(row) for row in rows], [row % 50 for row in rows], model)
    return reading, model.asked


def same_as_the_model(reading, rows, layers=(1,)):
    expected = Model(rows)(range(len(rows)), layers)
    assert reading.truncated.tolist() == expected.truncated.tolist()
    assert list(reading.reasons) == list(expected.reasons)
    np.testing.assert_array_equal(reading.offsets, expected.offsets)
    np.testing.assert_array_equal(reading.spans, expected.spans)
    assert sorted(reading.vectors) == sorted(layers)
    for layer in layers:
        np.testing.assert_array_equal(reading.vectors[layer], expected.vectors[layer])


def another_process():
    """Forget all that is held in memory, as a new process would start."""
    cache.flush()
    stores._open.clear()


def test_a_row_is_read_once_and_the_answer_is_the_same_each_time(store):
    rows = list(range(200))
    for expected in (200, 0, 0):
        reading, asked = recall(rows)
        same_as_the_model(reading, rows)
        assert len(asked) == expected
    another_process()
    reading, asked = recall(rows)
    same_as_the_model(reading, rows)
    assert not asked


def test_only_new_rows_are_read(store):
    recall(list(range(1000)))
    another_process()
    rows = [*range(500), *range(2000, 2010), *range(500, 1000)]
    reading, asked = recall(rows)
    same_as_the_model(reading, rows)
    assert sorted(asked) == [(row, 1) for row in range(2000, 2010)]


def test_duplicates_are_read_once(store):
    rows = [3, 5, 3, 3, 10, 5, 10]
    reading, asked = recall(rows)
    same_as_the_model(reading, rows)
    assert sorted(asked) == [(3, 1), (5, 1), (10, 1)]


def test_another_layer_reads_that_layer_alone(store):
    rows = list(range(100))
    recall(rows, (1,))
    reading, asked = recall(rows, (1, 2))
    same_as_the_model(reading, rows, (1, 2))
    assert asked == [] or {layer for _, layer in asked} == {2}
    assert len(asked) == 100
    another_process()
    assert not recall(rows, (2,))[1] and not recall(rows, (2, 1))[1]


def test_rows_that_have_a_reason_are_neither_read_nor_kept(store):
    """The number 5 and the text "5" share an id, and only one of them can be read."""
    reading, asked = recall([5, 6], reasons=["not_text", ""])
    assert list(reading.reasons) == ["not_text", ""]
    assert asked == [(6, 1)] and reading.offsets.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(reading.vectors[1], truth(6, 1))
    reading, asked = recall([5, 5], reasons=["", "not_text"])
    assert asked == [(5, 1)] and list(reading.reasons) == ["", "not_text"]
    assert reading.offsets.tolist() == [0, 3, 3]
    np.testing.assert_array_equal(reading.vectors[1], truth(5, 1))


def test_spaces_do_not_mix(store):
    other = Space.of({"model": "made up", "dtype": "bfloat16"}, "made up")
    assert other.digest != SPACE.digest
    recall([1, 2, 3])
    assert len(recall([1, 2, 3], space=other)[1]) == 3
    assert Space.of({"model": "made up"}, "in another folder").digest == SPACE.digest


def test_small_batches_wait_to_be_written_together(store):
    for row in range(30):
        same_as_the_model(recall([row])[0], [row])
    assert not list(store.rglob("*.arrow"))
    same_as_the_model(recall([3])[0], [3])
    assert not recall([3])[1]
    cache.flush()
    assert len(list(store.rglob("*.arrow"))) == 1
    another_process()
    assert not recall(list(range(30)))[1]


def test_work_of_some_seconds_is_written_at_once(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stores.time, "monotonic", lambda: now[0])
    recall([1])
    now[0] = stores.SECONDS / 2 - 0.1
    recall([2])
    assert not list(store.rglob("*.arrow"))
    now[0] = stores.SECONDS / 2
    recall([3])
    assert len(list(store.rglob("*.arrow"))) == 1


def test_a_slow_model_is_written_piece_by_piece(store, monkeypatch):
    """A piece that took its seconds is on disk before the next one begins."""
    now, kept = [0.0], []
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(stores.time, clock, lambda: now[0])

    class Slow(Model):
        def __call__(self, at, layers):
            kept.append(len(list(store.rglob("*.arrow"))))
            now[0] += 0.3 * len(at)
            return super().__call__(at, layers)

    ids = [name(row) for row in range(64)]
    space, target = Space.of({"model": "slow"}, "slow"), gathering([""] * 64)
    reading = cache.recall(space, target, ids, [10] * 64, Slow(list(range(64))))
    assert kept == [0, 1, 2, 3]
    same_as_the_model(reading, list(range(64)))


def test_what_another_process_wrote_is_seen(store, monkeypatch):
    """Two stores of one folder stand for two processes: they share the files and nothing else."""
    mine, theirs = (LayerStore(SPACE, 1, WIDTH) for _ in range(2))
    ids = part.packed([name(row) for row in range(40)])
    fresh = Model(list(range(40)))(range(40), [1])
    spans = Ragged(fresh.spans, fresh.offsets)
    target = gathering([""] * 40)
    assert not mine.fetch(ids, target, np.arange(40)).any()
    theirs.add(part.StoredRows(ids, spans, fresh.of(1), fresh.truncated, fresh.reasons), 0.0)
    theirs.flush()
    assert not mine.fetch(ids, target, np.arange(40)).any(), "the folder is not listed for every batch"
    monkeypatch.setattr(stores, "_RESCAN_AFTER", 0.0)
    assert mine.fetch(ids, target, np.arange(40)).all()
    same_as_the_model(target.joined({}), list(range(40)))


def test_a_forked_child_does_not_write_what_its_parent_will(store):
    recall([1, 2, 3])
    child = os.fork()
    if not child:
        cache.flush()
        os._exit(0)
    os.waitpid(child, 0)
    assert not list(store.rglob("*.arrow"))
    cache.flush()
    assert len(list(store.rglob("*.arrow"))) == 1


@pytest.mark.parametrize("library", ["multiprocess", "multiprocessing"])
def test_a_worker_writes_what_waits_as_it_ends(store, library):
    """Of either library: `datasets` starts the one, a DataLoader the other, and neither runs atexit."""
    context = importlib.import_module(library).get_context("fork")
    worker = context.Process(target=recall, args=([1, 2, 3],))
    worker.start()
    worker.join()
    assert worker.exitcode == 0 and len(list(store.rglob("*.arrow"))) == 1
    assert not recall([1, 2, 3])[1]


def test_a_store_that_may_not_be_written_is_done_without(store, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(part, "write", refuse)
    rows = list(range(100))
    for _ in range(2):
        reading, asked = recall(rows)
        same_as_the_model(reading, rows)
        assert len(asked) == 100
    assert caplog.text.count("no row is cached") == 1


def test_few_parts_are_held_open_and_all_are_read(store, monkeypatch):
    monkeypatch.setattr(stores, "_MAPPED", 3)
    for start in range(0, 1000, 100):
        recall(list(range(start, start + 100)))
    another_process()
    rows = np.random.default_rng(0).permutation(1000).tolist()
    reading, asked = recall(rows)
    same_as_the_model(reading, rows)
    (held,) = (store._mapped for store in stores._open.values())
    assert not asked and len(held) == 3


# The index


def test_ids_that_share_64_bits_are_told_apart(store):
    first, second = "00" * 8 + "11" * 8, "00" * 8 + "22" * 8
    assert (part.packed([first])[:, 0] == part.packed([second])[:, 0]).all()
    rows = {first: 1, second: 2}
    for one in (first, second, first):
        reading = cache.recall(SPACE, gathering([""]), [one], [1], Model([rows[one]]))
        np.testing.assert_array_equal(reading.vectors[1], truth(rows[one], 1))
        another_process()


def test_the_index_finds_what_a_dictionary_finds():
    rng = np.random.default_rng(0)
    index, known, places = RowIndex(), {}, 0
    for number in range(60):
        ids = rng.integers(0, 2**63, (int(rng.integers(1, 50)), 2), dtype=np.uint64)
        known |= {int(key): (number, row) for row, key in enumerate(ids[:, 0])}
        index.add({number: ids})
        places += len(ids)
    assert len(index) == places and len(index._runs) <= 12
    asked = np.array([[key, 0] for key in known] + [[5, 5], [2**64 - 1, 0]], np.uint64)
    found = index.find(asked)
    assert [(place >> 32, place & 0xFFFFFFFF) for place in found[:-2].tolist()] == list(known.values())
    assert found[-2:].tolist() == [UNKNOWN] * 2
    index.forget(7)
    gone = np.array([part == 7 for part, _ in known.values()])
    assert (index.find(asked)[:-2] == UNKNOWN).tolist() == gone.tolist()
    assert RowIndex().find(asked).tolist() == [UNKNOWN] * len(asked)


# The pace


def test_pieces_take_about_the_time_asked_for_and_leave_nothing_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hf_safefilter.cache.pace.time.perf_counter", lambda: now[0])
    sizes = np.random.default_rng(1).integers(10, 500, 3000)
    pace, seen, took, shortest = Pace(4.0), [], [], 500
    for piece in pace.pieces(sizes):
        assert (np.diff(piece) > 0).all() and sizes[piece].max() <= shortest, "longest first"
        shortest = sizes[piece].min()
        seen += piece.tolist()
        took.append(sizes[piece].sum() / 5000)  # a model that reads 5,000 a second
        now[0] += took[-1]
    assert sorted(seen) == list(range(3000))
    assert len(took) > 10 and all(3.0 < seconds <= 4.0 for seconds in took[1:-1])
    assert list(pace.pieces(np.array([], int))) == []


def test_a_model_slower_than_that_still_gets_pieces_worth_a_batch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hf_safefilter.cache.pace.time.perf_counter", lambda: now[0])
    lengths = []
    for piece in Pace(4.0).pieces(np.full(100, 10)):
        lengths.append(len(piece))
        now[0] += 60.0
    assert lengths == [16] * 6 + [4]
    assert [len(piece) for piece in Pace(4.0).pieces(np.full(100, 10), at_once=64)][0] == 64


@pytest.mark.parametrize(("passing", "again"), [(("busy", "too_long"), {0, 10, 20}), (("busy",), set()), ((), set())])
def test_a_reason_that_may_pass_is_not_kept(store, passing, again):
    rows = list(range(30))
    ids = [name(row) for row in rows]
    first = cache.recall(SPACE, gathering([""] * 30), ids, [1] * 30, Model(rows), passing=passing)
    same_as_the_model(first, rows)
    another_process()
    second, asked = recall(rows)
    same_as_the_model(second, rows)
    assert {row for row, _ in asked} == again


@pytest.mark.parametrize("said", ["off", "0", "no", "False"])
def test_it_can_be_turned_off(said, monkeypatch):
    monkeypatch.setenv(cache.SWITCH, said)
    assert not cache.enabled()


def test_it_is_on_unless_turned_off_and_nothing_is_guessed(monkeypatch):
    monkeypatch.delenv(cache.SWITCH)
    assert cache.enabled()
    monkeypatch.setenv(cache.SWITCH, "maybe")
    with pytest.raises(ValueError, match="neither on nor off"):
        cache.enabled()
