"""How much is tried: some hundred examples, the same each time; or FUZZ=5000 new ones of each kind (`make fuzz`)."""
# ruff: noqa: E501

import contextlib
import json
import os

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, settings

from hf_safefilter.cli import main

MANY = int(os.environ.get("FUZZ", "0"))

settings.register_profile(
    "fuzz",
    max_examples=MANY or 100,
    derandomize=not MANY,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")

ROW = {"prompt": "How are you?", "response": "Fine, thank you."}
BROKEN = {
    "empty.jsonl": b"", "spaces.jsonl": b" \n\n", "list.jsonl": b"[1]\n", "number.json": b"3", "text.txt": b"hello",
    "deep.jsonl": b'{"prompt": ' + b"[" * 50_000 + b"\n", "latin.jsonl": b'{"prompt": "\xe9"}\n', "cut.jsonl": b'{"a": "x',
    "utf16.jsonl": b"\xff\xfe{", "nul.csv": b"a,b\n\0,1\n", "ragged.csv": b"a,b\n1\n1,2,3\n", "cut.parquet": b"PAR1xPAR1",
    "cut.arrow": b"ARROW1\0\0\xff\xff", "cut.jsonl.gz": b"\x1f\x8b\x08\0junk", "cut.jsonl.zst": b"(\xb5/\xfdjunk",
    "big.json": b'[{"prompt": ' + b"9" * 5000 + b"}]", "recipe.yaml": b"data: {license: mit",
    "mixed.json": b'[{"prompt": 1}, {"prompt": {"a": [1]}}]', "\xe9\x1b[2J.jsonl": b"{",
}  # fmt: skip
"""Files that are not what their names say."""

FOLDERS = (
    "no_state",
    "cut_rows",
    "no_model",
    "no_output",
    "no_references",
    "no_trail",
    "lied",
    "no_decision",
    "no_study",
)
FILLED = ("scored", "decided", "published")
"""Folders that a user has written by `score`, `select` and `card`, of rows that are read in no time."""


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A folder with ten good rows in several forms, and with everything broken."""
    root = tmp_path_factory.mktemp("fuzz")
    rows = [
        {"prompt": f"What is {n}?", "response": f"It is {n} and no more.", "label": "safe" if n % 2 else "unsafe"}
        for n in range(10)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).save_to_disk(root / "saved")
    for name, content in BROKEN.items():
        (root / name).write_bytes(content)
    for name in FOLDERS:
        (root / name).mkdir()
    (root / "no_state" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    Dataset.from_list(rows).save_to_disk(root / "cut_rows")
    file = root / "cut_rows" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:200])
    Dataset.from_list(rows).save_to_disk(root / "no_trail")
    (root / "no_trail" / "safefilter.json").write_text('{"name": 1, "revision": null, "steps": [{}]}')
    (root / "lied" / "labels.jsonl").write_text('{"row_id": 1, "label": []}\n')
    (root / "no_decision" / "decision.json").write_text('{"column": 1, "threshold": "nan", "selection": {"by": []}}')
    (root / "no_study" / "effect.json").write_text('{"card": {"openings": 0, "verdict": null}}')
    (root / "no_study" / "locate.json").write_text('{"method": "gap", "first_block": -1, "last_block": "x"}')
    (root / "no_model" / "config.json").write_text("[]")
    (root / "no_output" / "provenance.json").write_text("{}")
    (root / "no_references" / "manifest.json").write_text(
        '{"kind": "references", "version": 2, "facts": {}, "files": {}}'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HF_SAFEFILTER_CACHE", str(root / "store"))
        for line in (
            "score rows.jsonl --method length --output scored",
            "select scored --by length_score --drop-count 3 --anyway --output decided",
            "card decided --license mit --source me --anyway --output published",
        ):
            patch.setattr("sys.argv", ["hf-safefilter", *line.split()])
            with contextlib.suppress(SystemExit):
                main()
    return root
