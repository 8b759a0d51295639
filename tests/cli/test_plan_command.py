"""hf-safefilter plan, for a person and for a program."""

import json

import pytest

from hf_safefilter.model import load
from hf_safefilter.toy.corpus import mixed_rows


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(60, 0.2, 3)))
    return path


TOY = ("--model", "toy", "--layers", "3")


def test_a_plan_from_two_numbers_loads_no_weights(call, monkeypatch):
    monkeypatch.setattr(load, "_load", lambda *_, **__: pytest.fail("weights were read"))
    told = ("--num-rows", "52000", "--mean-tokens", "250", "--device", "h100", "--device", "8xa100", "--price", "2.5")
    code, out, err = call("--format", "json", "plan", *TOY, *told)
    assert code == 0, err
    done = json.loads(out)["plan"]
    assert done["work"]["blocks"] == 3 and done["lengths"]["rows"] == 52000
    assert [one["device"] for one in done["devices"]] == ["h100", "8xa100"]
    assert all(one["cost_per_million"] > 0 for one in done["devices"])
    code, out, err = call("plan", *TOY, *told)
    assert code == 0 and "operations" in out and "cost" in out and "assumed" in out
    assert "52000 rows of 250 tokens" in err and "hf-safefilter embed" in err
    code, out, _ = call("--format", "quiet", "plan", *TOY, *told)
    assert [line.split()[0] for line in out.splitlines()] == ["h100", "8xa100"]


def test_rows_are_counted_and_sampled(call, rows):
    code, out, err = call("--format", "json", "plan", rows, *TOY, "--device", "l4")
    lengths = json.loads(out)["plan"]["lengths"]
    assert code == 0 and (lengths["rows"], lengths["sampled"]) == (60, 60) and lengths["mean"] > 10, err
    many = json.loads(call("--format", "json", "plan", rows, *TOY, "--device", "l4", "--num-rows", "6000")[1])["plan"]
    assert many["lengths"]["rows"] == 6000 and many["lengths"]["mean"] == lengths["mean"]
    told = json.loads(call("--format", "json", "plan", rows, *TOY, "--device", "l4", "--mean-tokens", "99")[1])["plan"]
    assert (told["lengths"]["rows"], told["lengths"]["mean"]) == (60, 99)


def test_rows_are_planned_for_as_long_as_they_will_be_read(call):
    few = (*TOY, "--num-rows", "9", "--device", "l4", "--mean-tokens")
    for words, mean in ((("99", "--max-length", "40"), 40), (("30", "--max-length", "40"), 30), (("99999",), 512)):
        code, out, err = call("--format", "json", "plan", *few, *words, "--too-long", "cut")
        lengths = json.loads(out)["plan"]["lengths"]
        assert code == 0 and (lengths["mean"], lengths["squared"]) == (mean, mean**2), err


def test_calibrating_measures_this_machine(call, rows):
    code, out, err = call("--format", "json", "plan", rows, *TOY, "--calibrate")
    assert code == 0, err
    (device,) = json.loads(out)["plan"]["devices"]
    assert device["measured"] and device["seconds"] > 0 and device["dtype"] in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (TOY, 2, "number of rows"),
        ((*TOY, "--num-rows", "5"), 2, "number of rows"),
        ((*TOY, "--mean-tokens", "5"), 2, "number of rows"),
        ((*TOY, "--num-rows", "5", "--mean-tokens", "5", "--device", "abacus"), 2, "abacus"),
        ((*TOY, "--num-rows", "5", "--mean-tokens", "5", "--position", "first"), 2, "--position first is not known"),
        ((*TOY, "--calibrate"), 2, "--calibrate measures rows"),
        (("--model", "toy", "--layers", "99", "--num-rows", "5", "--mean-tokens", "5", "--device", "l4"), 2, "99"),
        (("--model", "./nowhere", "--layers", "3", "--num-rows", "5", "--mean-tokens", "5"), 1, "nowhere"),
        (("none.jsonl", *TOY), 1, "no file, folder or Hub data set"),
    ],
)
def test_wrong_calls(call, words, code, says):
    got, out, err = call("plan", *words)
    assert (got, out) == (code, ""), err
    assert says in err and "Traceback" not in err
