"""Conversations to align the toy model on: corpus rows alone, as later turns, under a system message, or thanked.

Some begin with an answer that went along with a harmful request. That answer is not learned; taking it back is, so that
what stands at the end of an answer tells whether it went along: the state that row filters read.
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
    """One message, and whether the model is to learn to say it."""

    role: Literal["system", "user", "assistant"]
    content: str
    learned: bool


def training_dialogues(seed: int = 0, n_rows: int = 48_000) -> list[list[Message]]:
    """Conversations made of `n_rows` training rows, and 15 % as many that take back an unsafe answer."""
    rng = random.Random(f"dialogues {seed}")
    found: list[list[Message]] = []
    for row in training_rows(seed, n_rows):
        if found and len(found[-1]) < MOST_MESSAGES and rng.random() < LATER_TURN:
            found[-1] += _turn(row["prompt"], row["response"])
        else:
            found.append(_turn(row["prompt"], row["response"]))
        if rng.random() < THANKED:
            found[-1] += _turn(rng.choice(wording.THANKS), rng.choice(wording.WELCOMES))
    for row in unsafe_rows(round(n_rows * TAKEN_BACK), seed):
        went_along = _turn(row["prompt"], row["response"], learned=False)
        found.append(went_along + _turn(rng.choice(wording.THANKS), rng.choice(wording.REGRETS)))
    for messages in found:
        if rng.random() < UNDER_SYSTEM:
            messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM), "learned": False})
    return found


def _turn(prompt: str, response: str, *, learned: bool = True) -> list[Message]:
    return [
        {"role": "user", "content": prompt, "learned": False},
        {"role": "assistant", "content": response, "learned": learned},
    ]
