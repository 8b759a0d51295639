"""The training script runs from end to end, and the same seed gives the same weights."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_safefilter.errors import MissingError, OptionError
from hf_safefilter.toy.dialogues import training_dialogues

SCRIPT = Path(__file__).parents[2] / "examples" / "train_toy.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_toy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(script, monkeypatch):
    def run(out, *options):
        monkeypatch.setattr(sys, "argv", ["train_toy.py", "--out", str(out), "--prompts", "20", *options])
        script.main()

    return run


def test_the_same_seed_gives_the_same_weights_and_another_does_not(train, tmp_path, capsys):
    for name, seed in (("one", "3"), ("two", "3"), ("three", "4")):
        train(tmp_path / name, "--steps", "2", "--seed", seed)
    assert capsys.readouterr().out.count("refused of 20 held-out harmful prompts") == 3
    one, two, three = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    for name in ("tokenizer.json", "README.md", "toy.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    card = (tmp_path / "one" / "README.md").read_text()
    assert "train_toy.py --seed 3 --steps 2" in card
    assert "{" not in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]  # no scratch folder stays


def test_training_lowers_the_loss_of_what_the_assistant_says(script, train, tmp_path, capsys):
    train(tmp_path / "model", "--steps", "1")
    first = loss(capsys)
    train(tmp_path / "model", "--steps", "12")  # in the place of the first
    assert loss(capsys) < first - 0.5


def loss(capsys):
    return float(re.findall(r"loss (\S+)", capsys.readouterr().out)[-1])


def test_only_what_the_assistant_says_is_learned(script):
    dialogues = training_dialogues(0, 500)
    tokenizer = script.train_tokenizer(dialogues)
    taken_back = next(m for m in dialogues if m[0]["role"] == "user" and not m[1]["learned"])
    two_turns = next(m for m in dialogues if len(m) == 4 and all(x["learned"] for x in m[1::2]))
    for messages in (taken_back, two_turns):
        _, labels = script.encode(tokenizer, messages)
        said = tokenizer.decode([label for label in labels if label != script.IGNORED])
        assert said == "".join(f"{x['content']}<|end|>" for x in messages if x["learned"])


def test_steps_that_train_nothing_are_refused(train, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "none", "--steps", "0")
    assert stop.value.code == 2
    assert "use 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_folder_of_others_is_left_alone(train, tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(OptionError, match="other files"):
        train(tmp_path, "--steps", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_unsafe_answers_are_never_learned_but_taken_back():
    dialogues = training_dialogues(0, 2000)
    assert dialogues == training_dialogues(0, 2000)
    assert any(messages[0]["role"] == "system" for messages in dialogues)
    assert any(len(messages) >= 6 for messages in dialogues)
    taken_back = [m for m in dialogues if not all(x["learned"] for x in m if x["role"] == "assistant")]
    assert len(taken_back) == 300
    for messages in taken_back:
        assert [x["learned"] for x in messages if x["role"] == "assistant"] == [False, True]
    assert not any(x["learned"] for messages in dialogues for x in messages if x["role"] != "assistant")


def test_a_package_without_its_model_says_how_to_make_it(tmp_path, monkeypatch):
    import hf_safefilter.toy as toy

    monkeypatch.setattr(toy, "MODEL_FOLDER", tmp_path)
    with pytest.raises(MissingError, match="python examples/train_toy.py"):
        toy.toy_model_path()
