"""Flags of the program stand anywhere; a push is checked before a person is asked, and says what it would publish."""

import io
import json
import sys

import pytest

from hf_safefilter.cli.anywhere import flags_and_rest, requested_format
from hf_safefilter.cli.output import Format
from hf_safefilter.toy.corpus import mixed_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that `run` has written."""
    from hf_safefilter.cli import main

    at = tmp_path_factory.mktemp("run")
    (at / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(60, 0.2, 3)))
    recipe = {
        "data": {"path": str(at / "rows.jsonl"), "license": "cc0-1.0", "source": "a test"},
        "model": "toy", "methods": "length", "select": {"drop_count": 12},
    }  # fmt: skip
    (at / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        words = ["hf-safefilter", "run", str(at / "recipe.yaml"), "-o", str(at / "out"), "--anyway", "--quiet"]
        patch.setattr(sys, "argv", words)
        main()
    return at / "out"


@pytest.mark.parametrize(
    ("words", "flags", "rest"),
    [
        ("methods --format json", "--format=json", "methods"),
        ("cache ls --quiet", "--quiet", "cache ls"),
        ("push --yes out me/x -q", "--yes -q", "push out me/x"),
        ("export rows --format argilla", "", "export rows --format argilla"),
        ("export rows --format", "", "export rows --format"),
        ("card -- --quiet", "", "card -- --quiet"),
    ],
)
def test_flags_of_the_program_are_found_wherever_they_stand(words, flags, rest):
    assert flags_and_rest(words.split()) == (flags.split(), rest.split())


def test_the_last_form_that_is_asked_for_counts():
    assert requested_format([]) is Format.HUMAN
    assert requested_format(["--format", "json", "methods", "-q"]) is Format.QUIET
    assert requested_format(["-q", "methods", "--format=json"]) is Format.JSON


@pytest.mark.parametrize("words", [("--format", "json", "methods"), ("methods", "--format", "json")])
def test_the_form_of_output_may_stand_after_the_command(call, words):
    code, out, err = call(*words)
    assert code == 0, err
    assert "larf" in json.dumps(json.loads(out))


def test_quiet_is_short_for_the_form_of_that_name(call):
    assert call("methods", "-q") == call("--format", "quiet", "methods")
    assert call("methods", "-q")[1].splitlines()[0] == "larf"


def test_errors_have_the_form_that_is_asked_for_after_the_command(call, tmp_path):
    code, _, err = call("run", tmp_path / "none.yaml", "-o", tmp_path / "x", "--format", "json")
    assert (code, json.loads(err)["error"]) == (1, "MissingError")


def test_a_folder_that_is_called_like_a_command_does_not_turn_flags_into_keys(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, err = call("select", "run", "--by", "larf_score", "--drop-count", "0", "-o", "x")
    assert "--drop-count" in err and "drop_count:" not in err


def test_a_push_shows_a_summary_and_not_the_card(call, folder, hub, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    code, _, err = call("push", folder, f"{hub.user}/clean")
    assert code == 1 and not hub.requests("POST", "/commit/")
    shown = " ".join(err.split())
    for words in ("kept: 48", "dropped: 12", "license: cc0-1.0", "text of dropped rows: left out", f"as {hub.user}"):
        assert words in shown
    assert "--yes" in shown and "## " not in err


@pytest.mark.parametrize("words", [("--yes", "push"), ("push", "-y")])
def test_yes_may_stand_before_and_after_the_command(call, folder, hub, words):
    code, _, err = call(*words, folder, f"{hub.user}/clean")
    assert code == 0 and f"next: hf-safefilter verify {hub.user}/clean" in err, err
    code, out, err = call(*words, folder, f"{hub.user}/clean", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["commit"] == hub.repo(f"{hub.user}/clean").head()


def test_nobody_to_answer_is_said_and_nothing_is_pushed(call, folder, hub, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = call("push", folder, f"{hub.user}/clean")
    assert code == 2 and "nobody answered" in err and "--yes" in err
    assert not hub.requests("POST", "/commit/")


@pytest.mark.parametrize(
    ("repo", "token", "says"),
    [
        ("clean", True, "has no owner"),
        ("me/a clean set", True, "not a repository id"),
        ("me/clean", None, "nobody is logged in"),
        ("me/clean", "hf_nobody", "hf auth login"),
    ],
)
def test_name_and_login_are_checked_before_anybody_is_asked(call, folder, hub, monkeypatch, repo, token, says):
    monkeypatch.setattr(sys, "stdin", None)  # to ask would be an error
    if token is not True:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: token)
        monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: token, raising=False)
    code, _, err = call("push", folder, repo)
    assert code == 1 and says in " ".join(err.split()), err
    assert not hub.requests("POST", "/commit/")


def test_a_folder_that_was_altered_is_refused_before_anybody_is_asked(call, folder, hub, monkeypatch, tmp_path):
    import shutil

    monkeypatch.setattr(sys, "stdin", None)
    shutil.copytree(folder, tmp_path / "out")
    (tmp_path / "out" / "dropped.parquet").write_bytes(b"")
    code, _, err = call("push", tmp_path / "out", f"{hub.user}/clean")
    assert code == 1 and "dropped.parquet" in err


def test_a_score_is_named_by_its_column_or_its_method_and_a_slip_is_answered(call, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(20, 0.2, 3)))
    assert call("score", rows, "--method", "length", "-o", tmp_path / "scored")[0] == 0
    words = ("select", tmp_path / "scored", "--drop-count", 2, "--anyway", "-o", tmp_path / "decided")
    for name in ("length", "length_score"):
        code, _, err = call(*words, "--by", name)
        assert code == 0, err
        assert json.loads((tmp_path / "decided" / "decision.json").read_text())["column"] == "length_score"
    code, out, err = call("inspect", tmp_path / "scored", "--by", "length", "--drop-count", 2, "--format", "json")
    assert code == 0 and json.loads(out)["column"] == "length_score", err
    code, _, err = call(*words, "--by", "lengths")
    assert code == 1 and "did you mean 'length'?" in err
    code, _, err = call("evaluate", tmp_path / "scored", "--label", "label")
    assert code == 0 and "next: hf-safefilter label" in err, err  # a control is never what to decide by
    code, _, err = call("evaluate", tmp_path / "scored", "--label", "Labels")
    assert code == 1 and "did you mean 'label'?" in err
    code, _, err = call("embed", rows, "--model", "toy", "--layers", 3, "-o", tmp_path / "x",
                        "--column", "prompt=prompts", "--column", "response=response")  # fmt: skip
    assert code == 1 and "--column prompt=prompts names a column" in err and "did you mean 'prompt'?" in err


def test_what_columns_must_say_is_shown_as_flags(call, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "a": "b"}\n')
    _, _, err = call("embed", tmp_path / "rows.jsonl", "--model", "toy", "--layers", 3, "--column", "prompt=q",
                     "-o", tmp_path / "x")  # fmt: skip
    assert "--column prompt=... --column response=..." in err and "{" not in err
