import json

import pytest
from typer.testing import CliRunner

from hf_safefilter.cli import app
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.toy.corpus import heldout_prompts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    for kind in ("benign", "harmful", "borderline"):
        rows = [{"prompt": prompt} for prompt in heldout_prompts(kind, 30, 0)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_locate_then_freeze(files, tmp_path):
    done = run("--format", "json", "locate", "toy", "--normal", files / "benign.jsonl", "--malicious",
               files / "harmful.jsonl", "--output", tmp_path / "found")  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["signal"] and facts["layer"] == facts["last_block"] + 1
    assert facts["found"] == json.loads((tmp_path / "found" / "locate.json").read_text())
    done = run("--format", "json", "freeze", "toy", "--found", tmp_path / "found")
    plan = json.loads(done.stdout)
    assert (plan["first_block"], plan["last_block"]) == (facts["first_block"], facts["last_block"])
    assert plan["frozen_parameters"] + plan["trainable_parameters"] > 1_000_000
    assert plan["python"].startswith("freeze_safety_blocks(model, 0,")


def test_a_person_sees_a_table_and_the_next_command(files, tmp_path):
    few = ("--scales", "0.8,1.2", "--max-new-tokens", 4, "--limit", 12, "--refusals", "broad")
    asked = ("--over-refusal", files / "borderline.jsonl")
    done = run("locate", "toy", "--method", "scaling", *asked, *few, "--output", tmp_path / "s")
    assert done.exit_code == 0, done.output
    assert "scaling: measurements" in done.output and "interval" in done.output
    assert "unscaled: " in done.output and " answer" in done.output
    assert "No signal" in done.output or "next: " in done.output
    assert (tmp_path / "s" / "scaling.progress.jsonl").exists()


def test_lora_settings_are_printed(tmp_path):
    done = run("--format", "quiet", "freeze", "toy", "--blocks", "1-2", "--lora")
    settings = json.loads(done.stdout)
    assert settings["layers_to_transform"] == [0, 3, 4, 5] and "q_proj" in settings["target_modules"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("locate", "toy", "--method", "guess", "--output", "x"), OptionError),
        (("locate", "toy", "--alpha", "1.2", "--output", "x"), OptionError),
        (("locate", "toy", "--method", "bounds", "--initial", "3-", "--output", "x"), OptionError),
        (("locate", "toy", "--method", "bounds", "--alpha", "1", "--output", "x"), OptionError),
        (("locate", "toy", "--method", "scaling", "--scales", "a,b", "--output", "x"), OptionError),
        (("locate", "toy", "--over-refusal", "prompts.jsonl", "--output", "x"), OptionError),
        (("locate", "toy", "--method", "scaling", "--normal", "prompts.jsonl", "--output", "x"), OptionError),
        (("freeze", "toy"), OptionError),
        (("freeze", "toy", "--blocks", "2-9"), OptionError),
        (("freeze", "toy", "--blocks", "two"), OptionError),
        (("freeze", "toy", "--blocks", "1-\u00b2"), OptionError),
    ],
)
def test_wrong_calls_are_explained(words, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(run(*words).exception, error)


def test_a_result_without_signal_is_not_built_upon(tmp_path):
    from hf_safefilter.locate.safety_layers import SafetyLayers

    SafetyLayers("gap", None, None, "nothing there", ({"block": 0, "layer": 1, "gap": 0.0},)).save(tmp_path)
    assert isinstance(run("freeze", "toy", "--found", tmp_path).exception, DataError)
