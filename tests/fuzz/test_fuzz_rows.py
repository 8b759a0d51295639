"""Any rows and any bytes are read, or refused in a sentence; a row's reason says why it is not scored."""
# ruff: noqa: E501

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import SafefilterError

KEYS = [
    "prompt", "response", "messages", "conversations", "instruction", "input", "output", "text", "question", "answer",
    "chosen", "rejected", "system", "history", "tools", "role", "content", "from", "value", "completion", "label",
    "chat_template_kwargs", "tool_calls", "reasoning_content", "name", "type", "image", "row_id", "unscorable", "spans", "\x00", "",
]  # fmt: skip
WORDS = ["user", "assistant", "system", "tool", "human", "gpt", "text", "How are you?", "Fine.", "<|end|>", "{{ 7 * 7 }}", "[]",
         '[{"role": "user", "content": "x"}]', "{", "\x1b[2J", "\u202e", "\x00", "\ud800", "\U000f0000", " ", "", "ü" * 300]  # fmt: skip
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=20))
scalars = st.one_of(
    texts, texts, texts, st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.binary(max_size=4)
)
turns = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls", "weight", "type"]), scalars, max_size=4
    ),
    max_size=4,
)
cells = st.recursive(
    scalars | turns, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
rows = st.lists(st.dictionaries(st.sampled_from(KEYS), cells, min_size=1, max_size=5), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def embed():
    return EmbedLayers("toy", layers=[1])


@given(rows=rows)
def test_rows_in_memory(embed, rows):
    columns = {key for row in rows for key in row}
    batch = {key: [row.get(key) for row in rows] for key in columns}
    try:
        read = embed(batch)
    except SafefilterError as error:
        assert str(error).strip()
        return
    if isinstance(read["unscorable"], np.ndarray):  # one row may look like a batch, and a batch like one row
        assert len(read["unscorable"]) == len(read["row_id"]) == len(read["emb_layer_1"])


@given(rows=rows)
def test_rows_of_arrow(embed, rows):
    try:
        ds = Dataset.from_list(rows)
    except Exception:  # noqa: BLE001  (what Arrow cannot hold is no data set)
        return
    try:
        assert len(ds.map(embed, batched=True, load_from_cache_file=False)) == len(rows)
    except SafefilterError as error:
        assert str(error).strip()


lines = st.lists(
    st.one_of(
        rows.map(lambda rows: json.dumps(rows[0], default=repr).encode()),
        st.binary(max_size=30),
        st.sampled_from(
            [
                b"",
                b"[",
                b"{}",
                b"[1]",
                b"3",
                b"null",
                b" null ",
                b'{"a": ' + b"[" * 5000,
                b'{"prompt": NaN}',
                b"\xff\xfe",
                b"\xef\xbb\xbf{}",
                b'{"a": 1, "a": 2}',
                b'{"a": 99999999999999999999999}',
                b"a,b",
                b'"',
                b"PAR1",
                b"ARROW1\0\0",
            ]
        ),  # fmt: skip
    ),
    max_size=4,
)


@given(lines=lines, name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.jsonl.gz", "a.csv.zst"]),
       streaming=st.booleans())  # fmt: skip
def test_files(tmp_path_factory, lines, name, streaming):
    path = tmp_path_factory.mktemp("rows") / name
    path.write_bytes(b"\n".join(lines))
    try:
        loaded = load_rows(path, streaming=streaming)
    except SafefilterError as error:
        assert error.fix
        return
    if not streaming:  # a stream is read later
        assert len(loaded.rows) > 0


@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=3),
       kind=st.sampled_from(["parquet", "arrow", "saved"]))  # fmt: skip
def test_damaged_files(embed, tmp_path_factory, cut, flips, kind):
    folder = tmp_path_factory.mktemp("rows")
    ds = Dataset.from_list([{"prompt": f"Hello {n}", "response": "Hi."} for n in range(20)])
    if kind == "parquet":
        path = folder / "a.parquet"
        ds.to_parquet(str(path))
    else:
        ds.save_to_disk(folder / "set")
        path = folder / "set" / "data-00000-of-00001.arrow"
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[int(place * len(content))] = value
    path.write_bytes(content[: int(cut * len(content))] if not flips else content)
    try:
        loaded = load_rows(path if kind != "saved" else folder / "set")
        embed(loaded.rows.with_format("arrow")[:])
    except SafefilterError as error:
        assert error.fix
