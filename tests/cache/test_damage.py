"""Bytes that are not those that were written: noticed, set aside, read again; never an answer."""

import hashlib
import shutil

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from test_recall import SPACE, WIDTH, another_process, recall, same_as_the_model

from hf_safefilter.cache import part
from hf_safefilter.errors import IntegrityError
from hf_safefilter.storage import signature

ROWS = list(range(300))


@pytest.fixture
def written(store):
    """The one part of 300 rows."""
    recall(ROWS)
    another_process()
    (found,) = store.rglob("*.arrow")
    return found


def all_is_well_again(written, caplog, set_aside=1):
    another_process()
    reading, asked = recall(ROWS)
    same_as_the_model(reading, ROWS)
    assert asked, "damaged rows are read again"
    assert len(list(written.parent.glob("*.damaged"))) == set_aside
    assert caplog.text.count("set aside a damaged part") == set_aside
    another_process()
    assert not recall(ROWS)[1], "and are whole from then on"


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 1000, -1, -8, -300])
def test_a_part_that_was_cut(written, caplog, left):
    content = written.read_bytes()
    written.write_bytes(content[:left])
    all_is_well_again(written, caplog)


def test_flipped_bits_anywhere(written, caplog):
    """Each place in the file in turn, 60 of them: no flip may reach an answer, or bring the process down."""
    whole = written.read_bytes()
    rng = np.random.default_rng(0)
    places = [0, 9, len(whole) - 1, len(whole) - 9, *rng.integers(0, len(whole), 56).tolist()]
    for place in places:
        for leftover in written.parent.iterdir():
            leftover.unlink()
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        written.write_bytes(content)
        another_process()
        reading, asked = recall(ROWS)
        same_as_the_model(reading, ROWS)
        # rows whose id was hit are simply not found in the part that has them, until the part itself is opened
        assert len(asked) == 300, place
        assert list(written.parent.glob("*.damaged")), place


def test_a_part_under_another_name(written, caplog):
    written.rename(written.with_name("0" * 32 + ".arrow"))
    all_is_well_again(written, caplog)


def test_a_part_that_is_something_else(written, caplog):
    written.write_text("Dear diary, today I was taken for an Arrow file.")
    all_is_well_again(written, caplog)


def test_a_part_of_another_layer_or_space_is_not_taken_for_ours(store, written, caplog):
    home = SPACE.layer_folder(2)
    home.mkdir()
    shutil.copy(written, home)
    reading, asked = recall(ROWS, (2,))
    same_as_the_model(reading, ROWS, (2,))
    assert len(asked) == 300 and "not a part of this space and layer" in caplog.text


def test_a_part_that_lacks_a_column(written, caplog):
    table = pa.ipc.open_file(written).read_all().drop_columns(["truncated"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    other = written.with_name(signature.code_of(memoryview(content)) + ".arrow")
    other.write_bytes(content)
    written.unlink()
    all_is_well_again(other, caplog)


def rewritten(path):
    """The bytes of a part with other vectors and all else as it was."""
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    vectors = table["vectors"].combine_chunks()
    numbers = vectors.flatten().flatten().to_numpy().copy()
    numbers[:] = 1.0
    inner = pa.FixedSizeListArray.from_arrays(pa.array(numbers), WIDTH)
    table = table.set_column(
        table.column_names.index("vectors"),
        "vectors",
        pa.ListArray.from_arrays(vectors.offsets, inner, type=vectors.type),
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


NAMES = {
    "its own": lambda content, path, monkeypatch: path.stem,
    "a checksum": lambda content, path, monkeypatch: xxhash.xxh3_128_hexdigest(content),
    "a digest": lambda content, path, monkeypatch: hashlib.sha256(content).hexdigest()[:32],
    "the code of another user": lambda content, path, monkeypatch: code_elsewhere(content, path, monkeypatch),
}


def code_elsewhere(content, path, monkeypatch):
    with monkeypatch.context() as other:
        other.setenv("HF_SAFEFILTER_CACHE", str(path.parents[3] / "another"))
        return signature.code_of(memoryview(content))


@pytest.mark.parametrize("named", NAMES)
def test_a_part_that_was_rewritten_whole(written, caplog, monkeypatch, call, named):
    """By somebody who knows the format, and names it as its bytes deserve."""
    content = rewritten(written)
    other = written.with_name(NAMES[named](content, written, monkeypatch) + ".arrow")
    written.unlink()
    other.write_bytes(content)
    reading, asked = recall(ROWS)
    same_as_the_model(reading, ROWS)
    assert asked and "is not what was written" in caplog.text
    for path in written.parent.iterdir():
        path.unlink()
    other.write_bytes(content)
    assert call("cache", "verify")[0] == 1
    assert not other.exists() and other.with_suffix(".damaged").exists()


def test_parts_of_a_user_with_another_key_are_left_alone(written, monkeypatch, call, tmp_path):
    (tmp_path / "key").write_bytes(bytes(range(32)))
    monkeypatch.setenv(signature.KEY, str(tmp_path / "key"))
    another_process()
    assert recall(ROWS)[1], "they are not believed"
    assert call("cache", "verify")[0] == 0 and written.exists()


def test_a_part_that_vanishes_is_read_again(written, caplog):
    recall([9999])  # the folder has been listed, the part not opened
    written.unlink()
    reading, asked = recall(ROWS)
    same_as_the_model(reading, ROWS)
    assert len(asked) == 300 and "damaged" not in caplog.text


def test_a_part_that_vanishes_while_it_is_read_goes_on_being_read(written):
    recall(ROWS[:1])
    written.unlink()
    reading, asked = recall(ROWS)
    same_as_the_model(reading, ROWS)
    assert not asked


def test_a_part_that_cannot_be_opened_just_now_is_done_without_and_left_alone(written, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as busy:
        busy.setattr(part.pa, "memory_map", refuse)
        reading, asked = recall(ROWS)
        same_as_the_model(reading, ROWS)
        assert len(asked) == 300 and "Too many open files" in caplog.text
    another_process()
    assert written.exists() and not recall(ROWS)[1]


def test_half_written_files_are_not_looked_at(written):
    (written.parent / "tmpabc.tmp").write_bytes(written.read_bytes()[:500])
    assert not recall(ROWS)[1]


def test_a_part_says_what_is_wrong_with_it(written):
    mark = part.mark_of(SPACE.digest, 1)
    assert len(part.open_part(written, mark, WIDTH).ids) == 300
    with pytest.raises(IntegrityError, match="not a part of this space and layer"):
        part.open_part(written, mark, WIDTH + 1)
    with pytest.raises(FileNotFoundError):
        part.open_part(written.with_name("none.arrow"), mark, WIDTH)
    content = bytearray(written.read_bytes())
    content[len(content) // 2] ^= 4
    written.write_bytes(content)
    with pytest.raises(IntegrityError, match="is not what was written"):
        part.open_part(written, mark, WIDTH)
