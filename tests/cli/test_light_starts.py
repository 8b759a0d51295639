"""What a command imports before it answers, counted in modules: seconds would measure the machine."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from hf_safefilter.toy.corpus import mixed_rows

HEAVY = {
    "datasets", "faiss", "huggingface_hub", "httpx2", "matplotlib", "multiprocess", "numpy", "pandas", "pyarrow",
    "ray", "scipy", "sklearn", "torch", "transformers",
}  # fmt: skip
"""Packages that no answer needs which is about the words of a command alone."""

_PROGRAM = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted({name for name in sys.modules})), file=sys.stderr))
from hf_safefilter.cli import main
main()
"""


def started(*words):
    """Exit code, stderr and the modules that were imported, of a command in a process of its own."""
    command = [sys.executable, "-c", _PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said, _, modules = done.stderr.rstrip("\n").rpartition("\n")
    return done.returncode, said, set(json.loads(modules))


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("select", "--help")])
def test_help_is_light(words):
    code, said, modules = started(*words)
    assert code == 0, said
    assert not HEAVY & modules
    assert len(modules) < 700


WRONG = [
    (("select", "scored", "--by", "larf_score", "-o", "x", "--drop-fraction", "10"), "--drop-fraction 10"),
    (("select", "scored", "--by", "larf_score", "-o", "x"), "exactly one of --drop-fraction ..."),
    (("inspect", "scored", "--by", "larf_score", "--drop-count", "0"), "--drop-count 0"),
    (("plan", "rows.jsonl", "--model", "toy", "--layers", "three"), "names no layers"),
    (("plan", "rows.jsonl", "--model", "toy", "--layers", "3", "--position", "middle"), "--position middle"),
    (("plan", "--model", "toy", "--layers", "3"), "--num-rows and --mean-tokens"),
    (("plan", "--model", "toy", "--layers", "3", "--num-rows", "-1", "--mean-tokens", "5"), "--num-rows"),
    (("plan", "rows.jsonl", "--model", "toy", "--layers", "3", "--device", "z80"), "z80"),
    (("plan", "none.jsonl", "--model", "toy", "--layers", "3"), "there is no file"),
    (("embed", "rows.jsonl", "--model", "toy", "--layers", "three", "-o", "x"), "names no layers"),
    (("embed", "rows.jsonl", "--model", "toy", "--layers", "3", "--spans", "some", "-o", "x"), "--spans some"),
    (("score", "embedded", "--method", "nearst", "-o", "x"), "nearest"),
    (("compare", "rows.jsonl", "--model", "toy", "--methods", "larf,nearest,prob", "-o", "x"), "did you mean 'probe'"),
    (("compare", "rows.jsonl", "--model", "toy", "--layer", "three", "-o", "x"), "names no layers"),
    (("reference", "starter", "--model", "toy", "--layers", "3", "--trait", "harn", "-o", "x"), "harm"),
    (("run", "none.yaml", "-o", "x"), "there is no recipe"),
    (("run", "wrong.yaml", "-o", "x"), "drop_fraction"),
]


@pytest.mark.parametrize("form", [(), ("--format", "json")], ids=" ".join)
@pytest.mark.parametrize(("words", "says"), WRONG, ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_a_mistake_in_the_words_is_answered_before_anything_heavy_is_imported(words, says, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "wrong.yaml").write_text(
        "data: {path: rows.jsonl, license: mit, source: s}\nmodel: toy\nselect: {drop_fraction: 10}\n"
    )
    code, said, modules = started(*form, *words)
    assert code in (1, 2) and says in said, said
    assert not {"datasets", "pandas", "sklearn", "torch", "transformers"} & modules
    assert len(modules) < 800


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="a GPU is found by torch itself")
def test_doctor_does_not_wait_for_torch():
    code, said, modules = started("--format", "json", "doctor")
    assert code == 0, said
    assert not {"datasets", "torch", "transformers"} & modules


def test_a_decision_on_scored_rows_loads_no_library_of_models(call, tmp_path):
    rows, embedded, refs, scored = (tmp_path / name for name in ("rows.jsonl", "embedded", "refs", "scored"))
    rows.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(20, 0.2, 3)))
    assert call("embed", rows, "--model", "toy", "--layers", 4, "-o", embedded)[0] == 0
    assert call("reference", "starter", "--model", "toy", "--layers", 4, "-o", refs)[0] == 0
    assert call("score", embedded, "--method", "larf", "--references", refs, "-o", scored)[0] == 0
    words = ("select", scored, "--by", "larf_score", "--drop-count", 2, "--anyway", "-o", tmp_path / "decided")
    code, said, modules = started(*words)
    assert code == 0, said
    assert not {"faiss", "matplotlib", "sklearn", "torch", "transformers"} & modules
    assert len(modules) < 2600
