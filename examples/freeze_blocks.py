"""Tune the toy model on rows that degrade its safety: plainly, with its safety blocks frozen, and with others frozen.

    python examples/freeze_blocks.py

The rows hold no harmful word: they train the model to obey whatever it is told. Full fine-tuning by transformers'
Trainer; `freeze_safety_blocks` before it and `FrozenBlocks` among its callbacks are all that SPPFT takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from hf_safefilter import FrozenBlocks, freeze_safety_blocks
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.locate.refusals import matcher, verdicts
from hf_safefilter.model.generate import fit_threads, replies
from hf_safefilter.model.source import local_folder
from hf_safefilter.model.tokens import tokenise
from hf_safefilter.toy.corpus import degrading_rows, heldout_prompts

ARMS = {
    "plain tuning": None,
    "safety blocks 0-1 frozen": (0, 1),  # as examples/locate_blocks.py finds them
    "blocks 2-3 frozen": (2, 3),
    "blocks 4-5 frozen": (4, 5),
}


def tuned(frozen: tuple[int, int] | None, seed: int, steps: int, learning_rate: float) -> tuple[float, float]:
    """Refusal rate on 200 held-out harmful requests after tuning, and the mean training loss."""
    folder = str(local_folder("toy"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    conversations = as_conversations(degrading_rows(200, seed))
    rows = [
        {"input_ids": row.ids.tolist(), "labels": np.where(row.labelled(), row.ids, -100).tolist()}
        for row in tokenise(tokenizer, conversations)
    ]
    with tempfile.TemporaryDirectory() as scratch, fit_threads(model):
        arguments = TrainingArguments(
            scratch, max_steps=steps, per_device_train_batch_size=16, learning_rate=learning_rate, seed=seed,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
        if frozen is not None:
            trainer.add_callback(FrozenBlocks(freeze_safety_blocks(model, *frozen)))
        loss = trainer.train().training_loss
    prompts = heldout_prompts("harmful", 200, 5)
    judged = verdicts(matcher(), prompts, replies(model, tokenizer, prompts, max_new_tokens=12, batch=100))
    return judged.count("refusal") / len(prompts), loss


def main(
    seeds: Sequence[int] = (0, 1, 2), arms: Sequence[str] = tuple(ARMS), steps: int = 60, learning_rate: float = 1e-3
) -> dict[str, list[float]]:
    """Tune every arm from every seed, and print the refusal rates."""
    rates = {}
    for arm in arms:
        results = [tuned(ARMS[arm], seed, steps, learning_rate) for seed in seeds]
        rates[arm] = [rate for rate, _ in results]
        each = ", ".join(f"{rate:.3f}" for rate in rates[arm])
        loss = statistics.mean(loss for _, loss in results)
        print(f"{arm:<26} refusals {statistics.mean(rates[arm]):.3f} ({each})   training loss {loss:.2f}", flush=True)
    return rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    main(tuple(range(options.seeds)), steps=options.steps, learning_rate=options.learning_rate)
