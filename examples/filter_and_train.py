"""Filter a fine-tuning set, then tune on what was kept with TRL.

    python examples/filter_and_train.py

It runs offline on the toy model in a minute or two (needs `hf_safefilter[train]`). For your own: your model, your rows,
harmful requests of your domain answered and refused, and more steps.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from hf_safefilter import purify
from hf_safefilter.demo import mixed_rows
from hf_safefilter.locate.refusals import matcher, verdicts
from hf_safefilter.model.generate import replies
from hf_safefilter.toy import toy_model_path
from hf_safefilter.toy.corpus import heldout_prompts, reference_rows

MODEL = str(toy_model_path())


def main(steps: int = 40) -> dict[str, float]:
    """Tune on all rows and on the kept ones, and count refusals of harmful requests before and after."""
    rows = Dataset.from_list(mixed_rows()).select_columns(["prompt", "response"])
    kept = filtered(rows)
    refused = {"before": share_refused(AutoModelForCausalLM.from_pretrained(MODEL))}
    for name, chosen in (("all", rows), ("kept", kept)):
        refused[name] = share_refused(tuned(chosen, steps))
    for name, share in refused.items():
        print(f"  {name:<7} {share:.0%} of harmful requests refused")
    return refused


def filtered(rows: Dataset) -> Dataset:
    """The rows that may be tuned on."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {}
        for side, own in zip(("unsafe", "safe"), reference_rows(100, 7), strict=True):
            files[side] = f"{scratch}/{side}.jsonl"
            Path(files[side]).write_text("".join(json.dumps(row) + "\n" for row in own))
        facts = {"license": "cc0-1.0", "source": "made for the demo"}
        recipe = {"data": facts, "model": "toy", "references": files | facts, "select": {"drop_fraction": 0.15}}
        purified = purify(rows, recipe)
    print(f"{purified.verdict.sentence}\n{purified.counts.kept} rows kept, {purified.counts.dropped} dropped")
    return purified.kept.select_columns(["prompt", "response"])


def tuned(rows: Dataset, steps: int) -> PreTrainedModel:
    """The model after some steps of supervised fine-tuning; of each row the answer alone is learned."""
    chats = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["response"]}],
            }
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as scratch:
        options = SFTConfig(
            scratch, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, seed=0, use_cpu=True,
            bf16=False, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(MODEL, args=options, train_dataset=chats)
        trainer.train()
        return trainer.model.eval()


def share_refused(model: PreTrainedModel) -> float:
    """The share of harmful requests that the model refuses."""
    prompts = heldout_prompts("harmful", 100, 5)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    said = replies(model, tokenizer, prompts, max_new_tokens=12, batch=100)
    return verdicts(matcher(), prompts, said).count("refusal") / len(prompts)


if __name__ == "__main__":
    main()
