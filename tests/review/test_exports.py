"""Reviewed rows in the formats of other tools, and nothing of what rows say unless asked."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_safefilter.review.exports import write_argilla, write_atlas
from review.scored_folder import HOSTILE, PLAIN, UNREAD


@pytest.fixture
def decided(review):
    for who in ("ada", "bob"):
        review.decide(3, {"decision": "keep" if who == "ada" else "drop", "who": who})
    return review


def test_argilla_records(decided, tmp_path):
    write_argilla(decided, tmp_path / "records.json", text=False)
    records = json.loads((tmp_path / "records.json").read_text())  # an array: what Argilla's `from_json` reads
    assert len(records) == 60 and len({record["id"] for record in records}) == 60
    assert set(records[3]) == {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
    assert [response["value"] for response in records[3]["responses"]["decision"]] == ["keep", "drop"]
    assert len({response["user_id"] for response in records[3]["responses"]["decision"]}) == 2
    assert {response["status"] for response in records[3]["responses"]["decision"]} == {"submitted"}  # else drafts
    kept = decided.rows.scores < decided.is_safe.threshold
    assert [record["suggestions"]["decision"]["value"] for record in records] == np.where(kept, "keep", "drop").tolist()
    assert "score" not in records[UNREAD]["metadata"] and records[3]["metadata"]["category"] == "travel"
    assert all(set(record["fields"]) == {"row_id"} for record in records)


def test_a_table_for_embedding_atlas(decided, tmp_path):
    write_atlas(decided, tmp_path / "rows.parquet", text=False)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert {"x", "y", "score", "decision", "at_threshold", "row_id", "category", "split"} <= set(table.column_names)
    assert "text" not in table.column_names and table.num_rows == 60
    rows = table.to_pylist()
    assert rows[3]["decision"] == "drop and keep" and rows[4]["decision"] is None
    assert rows[UNREAD]["x"] is None and rows[UNREAD]["score"] is None and rows[UNREAD]["at_threshold"] == "drop"
    np.testing.assert_array_equal([row["x"] for row in rows[:UNREAD]], decided.row_map.rows[:UNREAD, 0])


def test_texts_only_where_asked_and_as_they_may_be_shown(decided, tmp_path):
    write_argilla(decided, tmp_path / "records.json", text=True)
    write_atlas(decided, tmp_path / "rows.parquet", text=True)
    record = json.loads((tmp_path / "records.json").read_text())[HOSTILE]
    said = pq.read_table(tmp_path / "rows.parquet")["text"][HOSTILE].as_py()
    assert record["fields"]["text"] == said and said.endswith(f"assistant: {PLAIN}") and said.startswith("user: ")
