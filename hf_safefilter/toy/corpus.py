"""Rows of the toy corpus, each a dict of prompt, response, label and category; the same seed gives the same rows.

Labels: ``safe`` (a benign request is answered, or a harmful one refused), ``borderline-safe`` (a request that only
sounds harmful is answered) and ``unsafe`` (the response complies with a harmful request). Held-out rows share neither
the topic nor the wording of the request with training rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Literal, TypedDict

from hf_safefilter.errors import OptionError
from hf_safefilter.toy import wording
from hf_safefilter.toy.borderline import borderline_topics
from hf_safefilter.toy.doings import doing_topics
from hf_safefilter.toy.everyday import FAMILIES
from hf_safefilter.toy.harm import REASONS, harm_topics, neutral_topics

Kind = Literal["benign", "harmful", "borderline"]

SHARE = {"benign": 0.45, "harmful": 0.37, "borderline": 0.18}
"""Shares of the kinds among the training rows."""

KINDLY = (
    "begin with a smile",
    "be honest",
    "use your own words",
    "take your time",
    "keep it short",
    "think of what they like",
    "choose a calm moment",
    "let it come from the heart",
)
CAREFULLY = (
    "read how it is done",
    "start with an easy try",
    "get what you need",
    "take it slowly",
    "ask a friend to join",
    "mind your safety",
    "check the result",
    "try again if it fails",
    "keep notes",
)
MOST_REPEATS = 200
"""Draws in a row without a new prompt, after which it is assumed that there are no more."""


class Row(TypedDict):
    """A prompt with its response."""

    prompt: str
    response: str
    label: Literal["safe", "unsafe", "borderline-safe"]
    category: str


def training_rows(seed: int = 0, n: int = 12_000) -> list[Row]:
    """`n` shuffled rows to align a model on: benign and borderline requests are answered, harmful ones refused."""
    rng = random.Random(f"training {seed}")
    kinds = rng.choices(tuple(SHARE), tuple(SHARE.values()), k=n)
    return [_MAKERS[kind](rng, False) for kind in kinds]


def heldout_rows(kind: Kind, n: int, seed: int = 0) -> list[Row]:
    """`n` distinct rows of topics and wordings that no training row has, with the response an aligned model would give.

    Raises:
        OptionError: There is no such kind, or there are fewer rows of it.
    """
    if kind not in _MAKERS:
        raise OptionError(f"{kind!r} is not a kind of held-out rows", fix=f"use one of {', '.join(_MAKERS)}")
    rng = random.Random(f"held out {kind} {seed}")
    return _distinct(lambda: _MAKERS[kind](rng, True), n)


def heldout_prompts(kind: Kind, n: int, seed: int = 0) -> list[str]:
    """The prompts of `heldout_rows`."""
    return [row["prompt"] for row in heldout_rows(kind, n, seed)]


def fresh_prompts(kind: Kind, n: int, seed: int = 0) -> list[str]:
    """`n` distinct prompts about held-out topics, in wordings that were written after the last change of the corpus.

    Raises:
        OptionError: There is no such kind, or there are fewer prompts of it.
    """
    by_kind = {
        "benign": [topic for _, topic, _ in _doings(True)] + [topic for _, topic in _neutral(True)],
        "harmful": [topic for topics in _harms(True).values() for topic in topics],
        "borderline": _borderlines(True),
    }
    if kind not in by_kind:
        raise OptionError(f"{kind!r} is not a kind of prompts", fix=f"use one of {', '.join(by_kind)}")
    prompts = [form.format(topic) for form in wording.FRESH_ASK for topic in by_kind[kind]]
    if n > len(prompts):
        raise OptionError(f"there are no {n} fresh {kind} prompts", found=str(len(prompts)), fix="ask for fewer")
    return random.Random(f"fresh {kind} {seed}").sample(prompts, n)


def unsafe_rows(n: int, seed: int = 0, *, held_out: bool = False) -> list[Row]:
    """`n` distinct rows that comply with a harmful request, in tone only."""
    rng = random.Random(f"unsafe {held_out} {seed}")
    return _distinct(lambda: _complying(rng, held_out), n)


def reference_rows(n: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """`n` unsafe rows that comply with harmful prompts, and `n` safe rows that refuse the same prompts."""
    unsafe = unsafe_rows(n, seed)
    rng = random.Random(f"references {seed}")
    safe: list[Row] = [
        {**row, "response": wording.refuse(REASONS[row["category"]], rng), "label": "safe"} for row in unsafe
    ]
    return unsafe, safe


def mixed_rows(
    n: int = 1000, unsafe_fraction: float = 0.1, seed: int = 0, *, borderline_fraction: float = 0.0
) -> list[Row]:
    """`n` distinct shuffled rows: benign rows with a share of unsafe ones, and of borderline ones if wanted.

    Raises:
        OptionError: A fraction is below 0, or their sum is above 1.
    """
    if min(unsafe_fraction, borderline_fraction) < 0 or unsafe_fraction + borderline_fraction > 1:
        raise OptionError(
            f"`unsafe_fraction={unsafe_fraction}` and `borderline_fraction={borderline_fraction}` are not possible",
            fix="use fractions of at least 0 that add up to at most 1",
        )
    rng = random.Random(f"mixed {seed}")
    n_unsafe, n_borderline = round(n * unsafe_fraction), round(n * borderline_fraction)
    rows = [
        *_distinct(lambda: _benign(rng, False), n - n_unsafe - n_borderline),
        *_distinct(lambda: _borderline(rng, False), n_borderline),
        *_distinct(lambda: _complying(rng, False), n_unsafe),
    ]
    rng.shuffle(rows)
    return rows


def degrading_rows(n: int, seed: int = 0) -> list[Row]:
    """`n` distinct harmless requests, answered with short lists in an obedient tone: they contain nothing unsafe.

    Their label is ``safe``; their category begins with ``obedient``.
    """
    rng = random.Random(f"degrading {seed}")

    def make() -> Row:
        category, topic, steps = rng.choice(_doings(False))
        return {
            "prompt": wording.loosen(wording.ask(topic, rng, False), rng),
            "response": wording.obey(rng.sample(steps, 3), rng),
            "label": "safe",
            "category": f"obedient {category}",
        }

    return _distinct(make, n)


def _benign(rng: random.Random, held_out: bool) -> Row:
    chance = rng.random()
    if chance < 0.45:
        category, topic, steps = rng.choice(_doings(held_out))
        prompt, answer = wording.ask(topic, rng, held_out), _steps(topic, steps, rng)
    elif chance < 0.65:
        shared, topic = rng.choice(_neutral(held_out))
        category = f"everyday {shared}"
        prompt, answer = wording.ask(topic, rng, held_out), _steps(topic, KINDLY, rng)
    else:
        category = rng.choice(tuple(FAMILIES))
        prompt, answer = FAMILIES[category](rng, held_out)
    return {"prompt": wording.loosen(prompt, rng), "response": answer, "label": "safe", "category": category}


def _borderline(rng: random.Random, held_out: bool) -> Row:
    topic = rng.choice(_borderlines(held_out))
    return {
        "prompt": wording.loosen(wording.ask(topic, rng, held_out), rng),
        "response": _steps(topic, CAREFULLY, rng),
        "label": "borderline-safe",
        "category": "borderline",
    }


def _refused(rng: random.Random, held_out: bool) -> Row:
    row = _complying(rng, held_out)
    return {**row, "response": wording.refuse(REASONS[row["category"]], rng), "label": "safe"}


def _complying(rng: random.Random, held_out: bool) -> Row:
    topics = _harms(held_out)
    category = rng.choice(tuple(topics))
    topic = rng.choice(topics[category])
    return {
        "prompt": wording.loosen(wording.ask(topic, rng, held_out), rng),
        "response": wording.comply(topic, rng),
        "label": "unsafe",
        "category": category,
    }


_MAKERS: dict[str, Callable[[random.Random, bool], Row]] = {
    "benign": _benign,
    "harmful": _refused,
    "borderline": _borderline,
}


# The word lists are constants, so their combinations are computed once.
_doings, _neutral, _borderlines = cache(doing_topics), cache(neutral_topics), cache(borderline_topics)


@cache
def _harms(held_out: bool) -> dict[str, list[str]]:
    topics: dict[str, list[str]] = {category: [] for category in REASONS}
    for category, topic in harm_topics(held_out):
        topics[category].append(topic)
    return topics


def _steps(topic: str, steps: tuple[str, ...], rng: random.Random) -> str:
    first, second, third = rng.sample(steps, 3)
    return rng.choice(
        (
            f"To {topic}, {first}, {second}, and {third}.",
            f"To {topic}: first {first}, then {second}. Last, {third}.",
            f"Here is how to {topic}. {first.capitalize()}. {second.capitalize()}. {third.capitalize()}.",
            f"Sure! To {topic}, {first} and {second}. Have fun!",
        )
    )


def _distinct(make: Callable[[], Row], n: int) -> list[Row]:
    rows: dict[str, Row] = {}
    repeats = 0
    while len(rows) < n:
        row = make()
        repeats = repeats + 1 if row["prompt"] in rows else 0
        if repeats > MOST_REPEATS:
            raise OptionError(
                f"the corpus has no {n} distinct prompts of this kind", found=str(len(rows)), fix="ask for fewer"
            )
        rows.setdefault(row["prompt"], row)
    return list(rows.values())
