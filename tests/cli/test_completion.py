"""What the Tab key offers in a shell, by the way that a shell asks for it."""

import json
import os
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict

from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.scores.controls import LengthScore, RandomScore

ROWS = [{"prompt": f"{n}?", "response": "a" * n, "label": "safe"} for n in range(1, 5)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = Dataset.from_list(ROWS)
    for step in (LengthScore(), RandomScore()):
        rows = rows.map(step, batched=True)
    vectors = rows.add_column("emb_layer_3", [[[0.0]]] * 4).add_column("emb_layer_3_last_prompt", [[[0.0]]] * 4)
    save_rows(vectors, folder / "scored", [LengthScore()], name="rows", revision="none")
    save_rows(DatasetDict(a=rows, b=rows), folder / "splits", [LengthScore()], name="rows", revision="none")
    (folder / "damaged.jsonl").write_text("{")
    return folder


def offered(place, words):
    line = f"hf-safefilter {words}"
    asked = {
        "_HF_SAFEFILTER_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    program = [sys.executable, "-c", "from hf_safefilter.cli import main; main()"]
    ran = subprocess.run(program, cwd=place, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert not ran.stderr, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("select scored --by ", {"length_score", "random_score"}),
        ("select scored --by le", {"length_score"}),
        ("inspect splits --by ", {"length_score", "random_score"}),
        ("score scored --layer ", {"3"}),
        ("score scored --method n", {"nearest"}),
        ("evaluate scored --label la", {"label"}),
        ("compare rows.jsonl --label ", {"prompt", "response", "label"}),
        ("compare damaged.jsonl --label ", set()),
        ("select nowhere --by ", set()),
    ],
)
def test_what_is_there_is_offered(place, words, expected):
    assert offered(place, words) == expected
