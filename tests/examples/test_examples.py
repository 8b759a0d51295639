"""The examples are run."""

import json
import runpy
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_safefilter.demo import mixed_rows
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.recipe import Recipe
from hf_safefilter.toy.corpus import heldout_rows

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_filtering_step_by_step_finds_the_planted_rows(capsys):
    runpy.run_path(str(EXAMPLES / "filter_rows.py"))["main"]()
    said = capsys.readouterr().out
    larf = next(float(line.split()[-1]) for line in said.splitlines() if line.strip().startswith("larf"))
    assert larf > 0.95
    assert "900 rows kept, 100 dropped" in said


def test_the_recipe_runs_with_rows_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("rows", mixed_rows()[:150]), ("good", heldout_rows("benign", 100))):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = purify(None, Recipe.read(EXAMPLES / "recipe.yaml"))
    assert done.is_safe.column == "nearest_score"
    assert "at most 0.05" in done.is_safe.rule


def test_kept_rows_are_tuned_on_by_trl():
    example = runpy.run_path(str(EXAMPLES / "filter_and_train.py"))
    rows = mixed_rows()
    unsafe = {(row["prompt"], row["response"]) for row in rows if row["label"] == "unsafe"}
    said = Dataset.from_list(rows).select_columns(["prompt", "response"])
    kept = example["filtered"](said)
    left = [row for row in kept if (row["prompt"], row["response"]) in unsafe]
    assert len(kept) == 850 and len(left) < 0.1 * len(unsafe)
    before = AutoModelForCausalLM.from_pretrained(example["MODEL"])
    assert example["share_refused"](before) > 0.9
    after = example["tuned"](kept, steps=1)
    assert any(not torch.equal(own, other) for own, other in zip(before.parameters(), after.parameters(), strict=True))
