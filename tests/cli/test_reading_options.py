"""How rows are read is said alike in every command that reads them by a model, and reaches the step that does."""

import json

import pytest
import typer
from datasets import load_from_disk

from hf_safefilter.cli import app
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import OptionError
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

READERS = {"embed", "reference starter", "reference build", "compare", "plan"}
OPTIONS = {"--position": "mean", "--spans": "trained", "--window": 18, "--too-long": "windows", "--ignore": ""}


def commands(group=None, name=""):
    """Every command, by what is typed."""
    for word, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{word} ")
        else:
            yield name + word, command


def test_every_command_that_reads_rows_by_a_model_says_how_in_the_same_words():
    found = {}
    for name, command in commands():
        defaults = {flag: option.default for option in command.params for flag in option.opts}
        found[name] = {flag: defaults[flag] for flag in OPTIONS if flag in defaults}
    assert {name: options for name, options in found.items() if options and name != "seal"} == dict.fromkeys(
        READERS, OPTIONS
    )
    assert found["seal"] == {"--ignore": ""}  # a trainer reads whole rows


@pytest.fixture
def files(tmp_path):
    unsafe, safe = reference_rows(6, 3)
    for name, rows in {"rows": mixed_rows(20, 0.2, 3), "unsafe": unsafe, "safe": safe}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def readers(monkeypatch):
    """The steps that were made; the command ends with the first one."""
    made, real = [], EmbedLayers.of

    def of(*given):
        made.append(real(*given))
        raise OptionError("enough")

    monkeypatch.setattr(EmbedLayers, "of", of)
    return made


@pytest.mark.parametrize(
    "words",
    [
        "embed rows.jsonl --layers 2 -o out",
        "reference starter --layers 2 -o out",
        "reference build unsafe.jsonl safe.jsonl --layers 2 --license mit --source us -o out",
        "compare rows.jsonl --layer 2 --methods larf -o out",
        "plan rows.jsonl --layers 2 --calibrate",
    ],
)
def test_the_step_gets_what_was_said(call, files, readers, monkeypatch, words):
    monkeypatch.chdir(files)
    options = "--model toy --position mean --spans all --window 10 --too-long cut --ignore b,a"
    code, _, err = call(*words.split(), *options.split())
    assert (code, "enough" in err) == (2, True), err
    (step,) = readers
    position = "mean,last_prompt" if words.startswith("reference") else "mean"  # which the method shift compares with
    assert (step.position, step.spans, step.window, step.too_long) == (position, "all", 10, "cut")
    assert step.ignore == ("a", "b")


@pytest.mark.parametrize(
    ("said", "position", "window"), [("first_3, last", "first_3,last", None), ("mean", "mean", 18)]
)
def test_windows_are_those_of_a_mean(call, files, readers, said, position, window):
    call("embed", files / "rows.jsonl", "--model", "toy", "--layers", "2", "--position", said, "-o", files / "out")
    assert (readers[0].position, readers[0].window) == (position, window)


def test_window_0_reads_whole_spans(call, files, readers):
    call("embed", files / "rows.jsonl", "--model", "toy", "--layers", "2", "--window", "0", "-o", files / "out")
    assert readers[0].window is None


@pytest.mark.parametrize(
    "words",
    [("--position", "middle"), ("--position", "last,last"), ("--spans", "some"), ("--too-long", "break"),
     ("--window", "1"), ("--window", "-3")],
)  # fmt: skip
def test_a_reading_that_is_none_is_refused(call, files, words):
    code, out, err = call("embed", files / "rows.jsonl", "--model", "toy", "--layers", "2", *words, "-o", files / "out")
    assert (code, out) == (2, "") and words[0] in err, err
    assert not (files / "out").exists()


@pytest.fixture
def asides(tmp_path):
    """Rows of their own column names, with text in a column of conversation that is not read."""
    rows = [{"q": row["prompt"], "a": row["response"], "text": f"aside {at}", "label": row["label"]}
            for at, row in enumerate(mixed_rows(60, 0.2, 3))]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_text_that_is_not_read_makes_rows_unscorable_unless_it_is_ignored(call, asides, tmp_path):
    words = ("embed", asides, "--model", "toy", "--layers", "4", "--column", "prompt=q", "--column", "response=a")
    code, out, err = call("--format", "json", *words, "-o", tmp_path / "strict")
    assert (code, json.loads(out)["unscorable: unread_text"]) == (0, 60), err
    code, out, err = call("--format", "json", *words, "--ignore", "text", "-o", tmp_path / "lenient")
    assert code == 0 and not [name for name in json.loads(out) if name.startswith("unscorable")], err


def test_every_later_command_reads_as_embed_did(call, asides, tmp_path):
    """The columns and what is ignored are named once: score, evaluate, select, effect and card go by them."""
    at = {name: tmp_path / name for name in ("embedded", "refs", "scored", "both", "decided", "effect", "card")}
    read = ("--model", "toy", "--layers", "4")
    columns = ("--column", "prompt=q", "--column", "response=a", "--ignore", "text")
    decided = ("select", at["both"], "--by", "larf_score", "--drop-count", "12", "--anyway", "-o", at["decided"])
    small = ("--steps", "1", "--batch", "2", "--seeds", "1", "--arms", "all", "--quick", "--device", "cpu")
    for words in (
        ("embed", asides, *read, *columns, "-o", at["embedded"]),
        ("reference", "starter", *read, "-o", at["refs"]),
        ("score", at["embedded"], "--method", "larf", "--references", at["refs"], "-o", at["scored"]),
        ("score", at["scored"], "--method", "length", "-o", at["both"]),
        decided,
        ("effect", at["decided"], *small, "-o", at["effect"]),
        ("card", at["decided"], "--license", "mit", "--source", "a test", "-o", at["card"]),
    ):
        code, out, err = call("--format", "json", *words)
        assert code == 0, err
        if words[0] == "effect":
            assert json.loads(out)["effect"]["counts"]["unreadable"] == 0
    both = load_from_disk(at["both"])
    assert both["length_score"][:] == [len(answer) for answer in both["a"][:]]
    code, out, err = call("--format", "json", "evaluate", at["scored"], "--label", "label")
    assert code == 0, err
    unscored = {one["score"]: one["unscored"] for one in json.loads(out)["evaluation"]["separations"]}
    assert unscored == {"larf_score": 0, "length_score": 0, "random_score": 0}
    provenance = json.loads((at["card"] / "provenance.json").read_text())
    assert provenance["controls"]["length_score"] is not None


def test_seal_ignores_what_it_is_told_to(call, asides, tmp_path):
    trusted = [{"q": row["prompt"], "a": row["response"], "text": "an aside"} for row in mixed_rows(12, 0.0, 9)]
    (tmp_path / "safe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trusted))
    columns = [f"{flag}={value}" for flag in ("--column", "--safe-column") for value in ("prompt=q", "response=a")]
    quick = ("--model", "toy", "--epochs", "1", "--batch-size", "30", "--device", "cpu")
    words = ("--format", "json", "seal", asides, tmp_path / "safe.jsonl", *columns, *quick, "-o", tmp_path / "sealed")
    code, _, err = call(*words)
    assert code == 1 and "unread_text" in err
    code, out, err = call(*words, "--ignore", "text")
    assert code == 0 and json.loads(out)["report"]["rows"] == {"rows": 60, "duplicates": 0}, err
