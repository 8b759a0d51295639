"""A small study on the toy model: every arm, few steps, few questions."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.effect import Questions, Study, Tuning, measure_effect
from hf_safefilter.effect.material import read_material, tokens_of
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.model import load
from hf_safefilter.model.reading_options import ModelOptions
from hf_safefilter.model.source import ModelKey
from hf_safefilter.model.tokens import Tokens
from hf_safefilter.toy.corpus import mixed_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def scored() -> Dataset:
    """80 rows, a fifth of them planted; the score knows which."""
    rows = mixed_rows(80, 0.2, 3)
    return Dataset.from_list([{**row, "some_score": float(row["label"] == "unsafe")} for row in rows])


@pytest.fixture(scope="session")
def is_safe() -> IsSafe:
    return IsSafe("some_score", 0.5)


@pytest.fixture(scope="session")
def key() -> ModelKey:
    return ModelKey("toy", load.resolve_revision("toy", None), "float32")


@pytest.fixture
def model(key):
    return load.fresh_causal_lm(key, CPU)


@pytest.fixture(scope="session")
def tokenizer(key):
    return load.tokenizer(key)


@pytest.fixture(scope="session")
def material(scored, is_safe, key):
    return read_material(scored, is_safe, key, None, None, None)


@pytest.fixture(scope="session")
def dialogues(key) -> list[Tokens]:
    """Conversations of two questions and two answers each."""
    pairs = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
             for row in mixed_rows(40, 0.2, 4)]  # fmt: skip
    rows = [{"messages": [*first, *second]} for first, second in zip(pairs[::2], pairs[1::2], strict=True)]
    return tokens_of(as_conversations(rows), key, None, None)


@pytest.fixture(scope="session")
def said(tokenizer):
    """Which tokens the assistant says, with those that end its turns: by the tokens of the toy's own template."""
    begins, ends = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])

    def mask(ids) -> np.ndarray:
        spoken, speaking = [], False
        for token in ids:
            spoken.append(speaking)
            speaking = token == begins or (speaking and token != ends)
        return np.array(spoken)

    return mask


@pytest.fixture(scope="session")
def questions() -> Questions:
    return Questions.toy(12)


@pytest.fixture(scope="session")
def small() -> Tuning:
    return Tuning(steps=2, batch=4, learning_rate=1e-3, method="full")


TOY = ModelOptions("toy", device="cpu")


@pytest.fixture(scope="session")
def study(scored, is_safe, questions, small):
    """Runs a study with small defaults; keywords change them."""

    def run(output, **change):
        data = change.pop("scored", scored)
        asked = change.pop("questions", questions)
        options = {"tuning": small, "seeds": (0, 1)} | change
        on_run = options.pop("on_run", None)
        return measure_effect(data, is_safe, Study(TOY, asked, **options), output, on_run=on_run)

    return run


@pytest.fixture
def scored_spans():
    """Ten benign rows, ten of a harmful and a benign answer, five harmful ones; spans have scores that know."""
    rows = mixed_rows(100, 0.3, 6)
    good, bad = ([row for row in rows if row["label"] == label] for label in ("safe", "unsafe"))
    talks = (
        [[good[i]] for i in range(10)] + [[bad[i], good[10 + i]] for i in range(10)] + [[bad[10 + i]] for i in range(5)]
    )
    turns = [
        [
            turn
            for row in talk
            for turn in (
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            )
        ]
        for talk in talks
    ]
    step = EmbedLayers("toy", [1], window=None)
    embedded = Dataset.from_list([{"messages": talk} for talk in turns]).map(step, batched=True)
    scores = [[float(row["label"] == "unsafe") for row in talk] for talk in talks]
    scored = embedded.add_column("some_span_scores", scores).add_column("some_score", [max(row) for row in scores])
    study = Study(
        "toy",
        Questions.toy(6),
        tuning=Tuning(steps=2, batch=4, learning_rate=1e-3),
        arms=("kept", "masked"),
        seeds=(0,),
    )
    return scored, IsSafe("some_score", 0.5), study
