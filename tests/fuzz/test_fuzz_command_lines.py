"""Any words after `hf-safefilter` end in a result or in a sentence; a traceback is never the answer."""
# ruff: noqa: E501

import io
import re
import shlex

import pytest
import typer
from fuzz.conftest import BROKEN, FILLED, FOLDERS, MANY
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_safefilter.cli import app

STRANGE = [
    "", " ", "x", "-", "--", "-1", "0", "1", "3", "9" * 30, "nan", "inf", "-inf", "1e9", "0.5", "None", "\x1b[2J", "a\x00b",
    "\udcff", "\u202e", "../..", ".", "/", "/dev/null", "/dev/full", "/proc/self/mem", "~nobody/x", "x" * 300, "x" * 5000,
    "a=b", "=", "a=[1", "a={b: 1", "a=*x", "a=" + "[" * 200, "[1", "{a: 1", "1-", "-1-2", "3-1", "1,1", "norm", "mean",
    "last,last", "first_0", "toy + x", "toy/x.gguf", "http://127.0.0.1:9/x", "https://me:pw@127.0.0.1/x", "starter", "larf",
    "cpu", "cuda:99", "float64", "eager", "flash_attention_2", "plain", "{% for", "{{ 'a' * 10**9 }}", "5GB", "-5GB", "unsafe",
    "label", "larf_score", "sha256:0", "a/b/c", "a/b", "ümläut", "rows.jsonl/below", "new", "nowhere/at/all", "toy", "saved",
    "rows.jsonl", "--anyway", "--yes", "--help", "--label", "-o", "--layers", *BROKEN, *FOLDERS, *FILLED, "--trust-vectors",
]  # fmt: skip
LINES = [
    "embed rows.jsonl --model toy --layers 3 --output new",
    "embed saved --model toy --layers 1,norm --output embedded --position last,mean --max-length 64 --num-proc 1",
    "merge embedded --output merged", "plan rows.jsonl --model toy --layers 3 --device h100 --price 2.5",
    "plan --model toy --layers 3 --num-rows 52000 --mean-tokens 250", "select embedded --by larf_score --drop-count 2 --output cut",
    "score rows.jsonl --method length --output scored", "select scored --by length_score --drop-fraction 0.2 --output decided",
    "evaluate scored --label label", "card decided --license mit --source x --output carded", "push carded a/b --yes",
    "reference show no_references", "reference build rows.jsonl cut.jsonl --model toy --layers 3 --license a --source b -o refs",
    "score embedded --method larf --layer 3 --references refs --output larfed", "freeze toy --blocks 1-2",
    "cache ls", "cache verify", "cache prune --max-size 5GB", "methods", "run recipe.yaml --output ran",
    "compare cut.jsonl --model toy --methods larf --label label --output compared", "demo --output rows.jsonl/below",
    "effect embedded --by larf_score --drop-fraction 0.05 --quick --output effect", "locate no_model --method gap --output found",
    "seal fit cut.jsonl rows.jsonl --model toy --output sealed", "inspect scored --by length_score --drop-count 2 --near 3",
    "label embedded --from label --output labelled", "verify published --source rows.jsonl --sample 4", "doctor",
    "select scored --by length_score --drop-count 2 --trust-vectors --output cut", "evaluate scored --label label --unsafe unsafe",
    "select scored --by length_score --label label --rule tpr_at_fpr --max-fpr 0.1 --output cut",
    "select scored --by length_score --known-good rows.jsonl --max-loss 0.5 --confidence 0.5 --output cut",
    "card decided --license mit --source x --effect no_study --anyway --output carded", "push published loopback/rows --yes --anyway",
    "inspect decided --near 2 --top 2 --text", "label scored --from lied --references no_references --output labelled",
    "label no_trail --trust-vectors --rounds 1 --output lied", "card no_decision --license mit --source x --trust-vectors -o carded",
    "merge no_trail lied --trust-vectors --output merged", "freeze toy --found no_study", "freeze toy --blocks 0-1 --lora",
    "reference audit --unsafe cut.jsonl --safe rows.jsonl --benign none", "reference push no_references loopback/refs --yes",
    "reference starter --model no_model --layers 3 --output refs", "score rows.jsonl --method random --option seed=3 --output scored2",
    "diff decided published", "diff no_decision decided --trust-vectors",
    "review no_decision --by length_score --drop-count 2 --no-browser --export-atlas new.parquet",
    "review no_decision --by length_score --drop-count 2 --no-browser --import cut.jsonl --decisions new.jsonl",
    "select scored --by length_score --drop-count 2 --decisions lied --add-refusals 2 --preview --output cut",
    "verify no_output --every", "effect no_decision --trust-vectors --model no_model --output effect",
    "locate no_model --method scaling --over-refusal rows.jsonl --scales 0.8,1.2 --max-new-tokens 1 --output found",
]  # fmt: skip
"""One line or more of every command; those that would compute for minutes are wrong from the start."""


HEAVY = ("run", "effect", "locate", "compare", "seal", "reference", "review")
READABLE = {"toy", "saved", "rows.jsonl", "starter", "no_trail", *FILLED}


def commands(group, words=()):
    """The words of every command."""
    if hasattr(group, "commands"):
        return [line for name, inner in group.commands.items() for line in commands(inner, (*words, name))]
    return [" ".join(words)]


def test_every_command_is_tried():
    tried = {" ".join(line.split()[:1]) for line in LINES}
    assert {words.split()[0] for words in commands(typer.main.get_command(app))} <= tried
    two = {"reference", "cache"}  # of these, each of their commands
    lines = {" ".join(line.split()[:2]) for line in LINES if line.split()[0] in two}
    assert {words for words in commands(typer.main.get_command(app)) if words.split()[0] in two} <= lines


@st.composite
def lines(draw):
    line = shlex.split(draw(st.sampled_from(LINES)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(1, len(line)))
        change = draw(st.sampled_from(["replace", "replace", "replace", "insert", "delete"]))
        word = [] if change == "delete" else [draw(st.sampled_from(STRANGE))]
        if line[0] == "demo" or (line[0] in HEAVY and set(word) & READABLE):
            continue
        line[at : at if change == "insert" else at + 1] = word
    return [*draw(st.sampled_from([[], [], ["--format", "json"], ["--format", "quiet"]])), *line]


@pytest.fixture
def at_home(places, monkeypatch, hub):
    monkeypatch.chdir(places)
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(places / "store"))


@settings(max_examples=MANY or 25)
@given(line=lines())
def test_no_command_line_ends_in_a_traceback(call, at_home, monkeypatch, line):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody answers
    code, out, err = call(*line)
    assert "HF_SAFEFILTER_DEBUG" not in err and "Traceback" not in err, err[-2000:]
    assert code in (0, 1, 2, 3), (code, err)
    assert code in (0, 3) or (err + out).strip()
    assert "me:pw@" not in err and not re.search("\x1b\\[2J|\u202e", out + err)
