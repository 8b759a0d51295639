"""Small files that unpack to gigabytes are refused before the gigabytes are there; others read as they did."""

import gzip
import json
import lzma
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_safefilter.data import plain_copies, unpacked_size
from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.errors import DataError


@pytest.fixture(autouse=True)
def low_limits(monkeypatch):
    monkeypatch.setattr(unpacked_size, "SMALL", 20_000_000)
    monkeypatch.setattr(plain_copies, "_SMALL", 20_000_000)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_of_equal_cells(tmp_path, streaming, nested):
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, pa.schema({"prompt": pa.list_(pa.string()) if nested else pa.string()})) as writer:
        text = ["x" * 100_000] * 200
        for _ in range(2):
            writer.write(pa.table({"prompt": [[cell] for cell in text] if nested else text}))
    assert path.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="a.parquet unpacks to more than 0.02 GB"):
        load_rows(path, streaming=streaming)
    assert pa.total_allocated_bytes() - before < 20_000_000


def test_an_arrow_file(tmp_path):
    table = pa.table({"prompt": ["x" * 10_000] * 1000})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as w:
        for _ in range(100):
            w.write_table(table)
    with pytest.raises(DataError, match="a.arrow unpacks"):
        load_rows(tmp_path / "a.arrow")


@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_a_compressed_text(tmp_path, opener):
    path = tmp_path / ("a.jsonl.gz" if opener is gzip.open else "a.jsonl.xz")
    with opener(path, "wb") as stream:
        for _ in range(100):
            stream.write(b'{"prompt": "' + b"x" * 1_000_000 + b'"}\n')
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to more than"):
        load_rows(path)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_an_honest_file_of_equal_cells_is_read(tmp_path):
    pq.write_table(pa.table({"prompt": ["the same"] * 50_000}), tmp_path / "a.parquet")
    assert len(load_rows(tmp_path / "a.parquet").rows) == 50_000


def test_a_file_that_was_read_before_is_not_unpacked_again(tmp_path, monkeypatch):
    pq.write_table(pa.table({"prompt": ["once"] * 50}), tmp_path / "a.parquet")
    load_rows(tmp_path / "a.parquet")
    monkeypatch.setattr(unpacked_size, "SMALL", 0)
    monkeypatch.setattr(unpacked_size, "MOST", 0)
    assert len(load_rows(tmp_path / "a.parquet").rows) == 50


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("streaming", [False, True])
def test_json_that_is_nested_too_deeply_is_not_parsed(tmp_path, name, streaming):
    """A parser that recurses would end the process, not the call."""
    (tmp_path / name).write_text('{"prompt": "a"}\n{"prompt": ' + "[" * 200_000)
    with pytest.raises(DataError, match="nested more than 100 deep\nfound: line 2"):
        load_rows(tmp_path / name, streaming=streaming)


def test_brackets_in_a_text_are_no_depth(tmp_path):
    text = '{"prompt": "' + '[{\\"' * 5000 + '", "list": [' + "[1], " * 500 + "[2]]}\n"
    (tmp_path / "a.jsonl").write_text(text)
    assert load_rows(tmp_path / "a.jsonl").rows[0]["list"][-1] == [2]


@pytest.mark.parametrize(("text", "line"), [("null", 1), ("\n null \n", 2), ('{"a": 1}\nnull\n{"a": 2}', 2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_is_null_does_not_end_the_process(tmp_path, text, line, streaming):
    """pyarrow is ended by SIGSEGV where a part of a file begins with one."""
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=f"line {line} is JSON but not an object"):
        load_rows(tmp_path / "a.jsonl", streaming=streaming)


def test_null_on_a_line_of_its_own_within_a_row(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "1?", "tools": [1, None]}], indent=1))
    assert load_rows(tmp_path / "a.json").rows[0]["tools"] == [1, None]
