"""embed --shard, merge, and what comes after them, from the command line."""

import errno
import json
import sys

import pytest
from datasets.exceptions import DatasetGenerationError

from hf_safefilter.cli import main
from hf_safefilter.recipe import EXAMPLE
from hf_safefilter.toy.corpus import mixed_rows


@pytest.fixture
def call(call):
    """The same, with what it says to programs read."""

    def run(*words):
        code, out, err = call("--format", "json", *words)
        return code, json.loads(out or "null"), err

    return run


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(30, 0.2, 3)))
    return path


@pytest.mark.parametrize("command", ["merge", "plan", "cache ls", "cache verify", "cache prune"])
def test_every_command_explains_itself_with_an_example(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["hf-safefilter", *command.split(), "--help"])
    with pytest.raises(SystemExit) as done:
        main()
    out = " ".join(capsys.readouterr().out.split())
    assert not done.value.code and "Usage: hf-safefilter" in out and f"Example: hf-safefilter {command}" in out


def test_shards_are_merged_and_scored(call, rows, tmp_path):
    embed = ("embed", rows, "--model", "toy", "--layers", "4", "-o", tmp_path / "shards", "--num-shards", "2")
    for index, done_before in ((0, False), (1, False), (1, True)):
        code, said, err = call(*embed, "--shard", index)
        assert code == 0, err
        assert (said["shard"], said["of"], said["done before"]) == (index, 2, done_before)
    code, said, err = call("merge", tmp_path / "shards", "-o", tmp_path / "embedded")
    assert (code, said["shards"], said["rows"]) == (0, 2, 30), err
    code, said, err = call("score", tmp_path / "embedded", "--method", "length", "-o", tmp_path / "scored")
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--shard", "0"), 2, "used together"),
        (("--num-shards", "2"), 2, "used together"),
        (("--shard", "2", "--num-shards", "2"), 2, "counted from 0"),
        (("--num-proc", "0"), 2, "--num-proc 0"),
    ],
)
def test_wrong_calls(call, rows, tmp_path, words, code, says):
    got, _, err = call("embed", rows, "--model", "toy", "--layers", "4", "-o", tmp_path / "x", *words)
    assert got == code and says in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "rows.jsonl", "--model", "toy", "--layers", "4"),
        ("score", "rows.jsonl", "--method", "length"),
        ("run", "recipe.yaml"),
    ],
)
def test_an_output_that_would_be_refused_is_refused_before_the_work(call, rows, tmp_path, monkeypatch, words):
    def no_work(*_, **__):
        raise AssertionError("it went to work")

    (tmp_path / "recipe.yaml").write_text(EXAMPLE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    # first what is imported for it: modules that are imported later would keep the function that does no work
    monkeypatch.setattr("hf_safefilter.pipeline.purify.purify", no_work)
    monkeypatch.setattr("hf_safefilter.data.load_rows.load_rows", no_work)
    code, _, err = call(*words, "-o", "mine")
    assert code == 2 and "mine holds other files" in err


@pytest.mark.parametrize(
    "place",
    ["datasets.DatasetBuilder.download_and_prepare", "datasets.Dataset.map", "datasets.Dataset.save_to_disk"],
)
def test_a_full_disk_is_named_wherever_it_is_met(call, rows, tmp_path, monkeypatch, place):
    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DatasetGenerationError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(place, full)
    code, _, err = call("embed", rows, "--model", "toy", "--layers", "4", "-o", tmp_path / "x")
    assert code == 1 and "a disk is full" in err and "run the same command again" in err
    assert not (tmp_path / "x").exists()


def test_a_merge_of_nothing(call, tmp_path):
    assert call("merge", "-o", tmp_path / "x")[0] == 2
    code, _, err = call("merge", tmp_path, "-o", tmp_path / "x")
    assert code == 1 and "holds no shards" in err and "--num-shards" in err
