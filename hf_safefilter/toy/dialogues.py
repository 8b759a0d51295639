"""Conversations to align the toy model on: corpus rows alone, as later turns, under a system message, or with thanks.

Some begin with an answer that complies with a harmful request. The model does not learn this answer, but it learns to
take it back; so its state at the end of an answer, which row filters read, says whether the answer complied.
"""

from __future__ import annotations

import random
from typing import Literal, TypedDict

from hf_safefilter.toy import wording
from hf_safefilter.toy.corpus import training_rows, unsafe_rows

SYSTEM = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a friendly guide.",
    "Be kind and clear.",
    "You help people with everyday tasks.",
    "Give short answers.",
)
MOST_MESSAGES = 6
LATER_TURN = 0.15
THANKED = 0.15
UNDER_SYSTEM = 0.2
TAKEN_BACK = 0.15


class Message(TypedDict):
    """One message, and whether the model is trained to say it."""

    role: Literal["system", "user", "assistant"]
    content: str
    learned: bool


def training_dialogues(seed: int = 0, n_rows: int = 48_000) -> list[list[Message]]:
    """Conversations made of `n_rows` training rows, and 15 % as many in which an unsafe answer is taken back."""
    rng = random.Random(f"dialogues {seed}")
    dialogues: list[list[Message]] = []
    for row in training_rows(seed, n_rows):
        if dialogues and len(dialogues[-1]) < MOST_MESSAGES and rng.random() < LATER_TURN:
            dialogues[-1] += _turn(row["prompt"], row["response"])
        else:
            dialogues.append(_turn(row["prompt"], row["response"]))
        if rng.random() < THANKED:
            dialogues[-1] += _turn(rng.choice(wording.THANKS), rng.choice(wording.WELCOMES))
    for row in unsafe_rows(round(n_rows * TAKEN_BACK), seed):
        complied = _turn(row["prompt"], row["response"], learned=False)
        dialogues.append(complied + _turn(rng.choice(wording.THANKS), rng.choice(wording.REGRETS)))
    for messages in dialogues:
        if rng.random() < UNDER_SYSTEM:
            messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM), "learned": False})
    return dialogues


def _turn(prompt: str, response: str, *, learned: bool = True) -> list[Message]:
    return [
        {"role": "user", "content": prompt, "learned": False},
        {"role": "assistant", "content": response, "learned": learned},
    ]
