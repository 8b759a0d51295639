"""The command line as a person, a program and a pipe use it, on the toy model."""

import errno
import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest
import torch
from datasets import load_from_disk

from hf_safefilter import cli
from hf_safefilter.toy.corpus import mixed_rows

COMMANDS = [
    "embed", "reference", "score", "compare", "evaluate", "select", "effect", "run", "demo", "card", "push", "doctor",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(60, 0.2, 3)))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "Usage: hf-safefilter" in out
    if command != "reference":
        assert f"hf-safefilter {'--format json ' if command == 'doctor' else ''}{command}" in " ".join(out.split())


def test_the_whole_chain_by_hand(call, rows, tmp_path):
    """embed, reference, score, evaluate, select, card: each command starts from what the one before wrote."""
    at = {name: tmp_path / name for name in ("embedded", "refs", "scored", "both", "decided", "out")}
    code, out, err = call("--format", "json", "embed", rows, "--model", "toy", "--layers", "3,4", "-o", at["embedded"])
    assert code == 0, err
    assert json.loads(out)["rows"] == 60
    code, out, err = call(
        "--format", "quiet", "reference", "starter", "--model", "toy", "--layers", "3,4", "-o", at["refs"]
    )
    assert (code, out.startswith("sha256:")) == (0, True), err
    common = ("--layer", "4", "--references", at["refs"])
    assert call("score", at["embedded"], "--method", "larf", *common, "-o", at["scored"])[0] == 0
    code, _, err = call("score", at["scored"], "--method", "nearest", *common, "--option", "k=3", "-o", at["both"])
    assert code == 0, err
    code, out, err = call("--format", "json", "evaluate", at["both"], "--label", "label")
    assert code == 0, err
    assert {"larf_score", "nearest_score", "length_score", "random_score"} <= set(
        json.dumps(json.loads(out)).split('"')
    )
    # nobody should decide by references of another domain than the rows'; what this decides is not looked at here
    decide = ("select", at["both"], "--by", "larf_score", "--anyway")
    code, out, err = call("--format", "json", *decide, "--drop-count", "12", "-o", at["decided"])
    assert code == 0, err
    assert json.loads(out)["dropped"] >= 12
    assert len(load_from_disk(at["decided"] / "kept")) == json.loads(out)["kept"]
    # a decision that drops nothing can be read again too
    assert call(*decide, "--threshold", "9", "-o", tmp_path / "all")[0] == 0
    assert len(load_from_disk(tmp_path / "all" / "dropped")) == 0
    code, _, err = call("card", at["decided"], "--license", "cc0-1.0", "--source", "a test", "-o", at["out"])
    assert code == 0, err
    card = (at["out"] / "README.md").read_text()
    assert "cc0-1.0" in card
    assert "LarfScore" in card or "larf" in card


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("embed", "none.jsonl", "--model", "toy", "--layers", "3", "-o", "x"), 1, "no file, folder or Hub data set"),
        (("embed", "ROWS", "--model", "toy", "--layers", "three", "-o", "x"), 2, "--layers"),
        (("embed", "ROWS", "--model", "toy", "--layers", "99", "-o", "x"), 2, "99"),
        (("embed", "ROWS", "--model", "./nowhere", "--layers", "3", "-o", "x"), 1, "nowhere"),
        (("embed", "ROWS", "--layers", "3", "-o", "x"), 2, "model"),
        (("score", "ROWS", "--method", "larf", "-o", "x"), 1, "not written by this program"),
        (("run",), 2, "--example"),
        (("run", "none.yaml", "-o", "x"), 1, "none.yaml"),
        (("card", "ROWS", "--license", "mit", "--source", "s", "-o", "x"), 1, "no decision"),
        (("push", "none", "me/rows", "--yes"), 1, "none"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_a_wrong_call_gets_a_sentence_and_an_exit_code(call, rows, tmp_path, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    got, out, err = call(*(rows if word == "ROWS" else word for word in words))
    assert (got, out) == (code, ""), err
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_errors_are_json_for_a_program(call, tmp_path):
    code, out, err = call("--format", "json", "run", tmp_path / "none.yaml", "-o", tmp_path / "x")
    assert (code, out) == (1, "")
    assert json.loads(err)["fix"] == "print an example: hf-safefilter run --example"


def test_run_prints_an_example_that_runs_and_its_schema(call, rows, tmp_path):
    code, example, _ = call("run", "--example")
    assert code == 0
    (tmp_path / "recipe.yaml").write_text(example.replace("rows.jsonl", str(rows)).replace("layer: auto", "layer: 4"))
    words = ("--format", "json", "run", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    code, out, err = call(*words, "--anyway")
    assert code == 0, err
    assert json.loads(out)["counts"]["rows"] == 60
    assert json.loads(call("run", "--schema")[1])["title"] == "Recipe"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "provenance.json", "croissant.json", "dropped.parquet", "data", "plots"} <= names


def test_doctor_says_what_is_there(call):
    code, out, _ = call("--format", "json", "doctor")
    facts = json.loads(out)
    assert (code, facts["missing"]) == (0, "nothing")
    assert facts["device"] in ("cpu", "cuda:0", "mps")
    assert "token" not in facts


def test_the_installed_program_starts_and_ends_in_its_own_process():
    done = subprocess.run(
        [sys.executable, "-c", "from hf_safefilter.cli import main; main()", "run", "none.yaml", "-o", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no recipe" in done.stderr


def test_push_publishes_what_run_wrote_and_asks_first(call, rows, tmp_path, hub, monkeypatch):
    recipe = {
        "data": {"path": str(rows), "license": "cc0-1.0", "source": "a test"},
        "model": {"name": "toy"},
        "layer": 4,
        "select": {"drop_count": 12},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert call("run", tmp_path / "recipe.yaml", "-o", tmp_path / "out", "--anyway")[0] == 0
    repo = f"{hub.user}/clean"
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert call("push", tmp_path / "out", repo)[0] == 1
    assert not hub.requests("POST", "/commit/")
    code, out, err = call("--format", "json", "push", tmp_path / "out", repo, "--yes")
    assert code == 0, err
    assert json.loads(out)["commit"] == hub.repo(repo).head()
    assert hub.token not in out + err


def test_reference_sets_go_to_the_hub_and_come_back(call, tmp_path, hub):
    assert call("reference", "starter", "--model", "toy", "--layers", "4", "-o", tmp_path / "refs")[0] == 0
    repo = f"{hub.user}/refs"
    code, _, err = call("reference", "push", tmp_path / "refs", repo, "--yes")
    assert code == 0, err
    code, out, err = call("--format", "json", "reference", "show", repo)
    assert code == 0, err
    assert json.loads(out)["unsafe"] == 220


@pytest.mark.parametrize(
    ("stop", "code"), [("raise KeyboardInterrupt", 130), ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(600)", 143)]
)
def test_what_stops_a_command_is_answered_in_words(stop, code):
    script = f"""
import hf_safefilter.cli.doctor as doctor, os, signal, sys, time
from hf_safefilter import cli
def stop(*_): {stop}
command = next(one for one in cli.app.registered_commands if one.callback.__name__ == "doctor")
command.callback = lambda: stop()
sys.argv = ["hf-safefilter", "doctor"]
command.name = "doctor"
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "finished work is kept" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("unable to mmap 4337992 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("can't start new thread"),
        pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
    ],
)
def test_too_little_memory_is_said_in_words(error):
    said = cli._explained(error)
    assert said.fact == "there is too little memory" and "same command again" in said.fix
    assert cli._explained(ValueError("a memory of summer")).fact == "ValueError: a memory of summer"


@pytest.mark.parametrize(
    ("code", "fact"),
    [
        (errno.ENOSPC, "a disk is full, or a file may not grow"),
        (errno.EFBIG, "a disk is full, or a file may not grow"),
        (errno.EIO, "a file or folder cannot be used: Input/output error"),
        (errno.EMFILE, "a file or folder cannot be used: Too many open files"),
        (errno.ECONNREFUSED, "ConnectionRefusedError: [Errno 111] Connection refused"),
    ],
)
def test_an_error_of_the_system_is_said_in_words(code, fact):
    assert cli._explained(OSError(code, os.strerror(code))).fact == fact


def test_a_panic_of_a_library_is_said_in_words(call, monkeypatch):
    class Panic(BaseException):
        """As of the libraries in Rust, which is no `Exception`."""

    def panic(*_):
        raise Panic("the thread pool has not been initialized")

    (command,) = [one for one in cli.app.registered_commands if one.name == "methods"]
    monkeypatch.setattr(command, "callback", lambda: panic())
    code, _, err = call("methods")
    assert code == 1 and "Panic: the thread pool" in err and "Traceback" not in err
