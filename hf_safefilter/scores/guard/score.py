"""GuardScore: what would a guard model say of the response?"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import Reading
from hf_safefilter.columns import reason_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import TEXT, Conversation, conversations
from hf_safefilter.errors import OptionError
from hf_safefilter.scores.base import Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.guard.presets import CLASSIFIER, PRESETS, recognise
from hf_safefilter.step import Step

if TYPE_CHECKING:
    import torch

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.guard.verdict import Asks

logger = logging.getLogger(__name__)

NON_FINITE = "non_finite"
"""Reason of a row for which the guard gives no number."""


@dataclass(frozen=True, slots=True)
class GuardScore(Score):
    """P(unsafe) of the last response by a guard model: the share of its unsafe words in the logits of the verdict.

    The conversation is rendered by the guard's own chat template; system turns are left out, which guards do not
    judge, and a row of plain text is judged as what a user says. Nothing is generated. `guard_unscored` says why a row
    has no score.

    Args:
        model: Hub id or local folder of the guard: a causal model, or one with a classification head.
        preset: one of `PRESETS`, or "auto": by its head, its chat template, or its name.
        unsafe: words (or label names) that mean unsafe, instead of the preset's.
        safe: words that mean safe.
        leads: what the guard writes before its verdict; with further answers before it, before each of them.
        guidelines: policies for a guard that judges by one (ShieldGemma), one forward each; the worst counts.
        revision: branch, tag or commit; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        max_length: tokens a row may have; the guard's own limit if None. The middle of a longer response is cut.
        columns: where prompt and response are, for rows of no known shape.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best there is if None.
        chat_template: for a guard that has none.

    Raises:
        OptionError: no such preset, none that fits, or label names that the classifier does not have.
        ModelError: the guard cannot be read, or has no tokens by which its verdicts could be told apart.

    Source: the guards' model cards; Llama Guard, arXiv 2312.06674; ShieldGemma, arXiv 2407.21772; WildGuard, arXiv
    2406.18495; Qwen3Guard, arXiv 2510.14276.
    """

    METHOD: ClassVar[str] = "guard"
    MEASURES: ClassVar[str] = "P(unsafe) of a guard model's verdict token"
    REQUIRES: ClassVar[str] = "a guard model"
    SOURCE: ClassVar[str] = "Llama Guard, ShieldGemma, WildGuard, Qwen3Guard"

    model: str
    preset: str = "auto"
    _: KW_ONLY
    unsafe: Sequence[str] | None = None
    safe: Sequence[str] | None = None
    leads: Sequence[str] | None = None
    guidelines: Sequence[str] | None = None
    revision: str | None = None
    dtype: str = "auto"
    max_length: int | None = None
    columns: Mapping[str, str] | Pairs | None = None
    device: str | None = None
    chat_template: str | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        from hf_safefilter.model import load
        from hf_safefilter.model.source import ModelKey

        if self.max_length is not None and (type(self.max_length) is not int or self.max_length < 2):
            raise OptionError(f"max_length={self.max_length!r} leaves no room for a row", fix="use 2 tokens or more")
        settle = object.__setattr__
        settle(self, "model", str(self.model))
        settle(self, "columns", as_pairs(self.columns))
        settle(self, "revision", load.resolve_revision(self.model, self.revision))
        config = load.model_config(ModelKey(self.model, self.revision, "float32"))
        stored = getattr(config.get_text_config(), "dtype", None)
        settle(self, "dtype", load.pick_dtype(self.dtype, load.pick_device(self.device, None), stored))
        settle(self, "preset", self._preset(config.architectures or ()))
        for name in ("unsafe", "safe", "leads", "guidelines"):
            given = getattr(self, name)
            settle(self, name, _words(name, getattr(PRESETS[self.preset], name) if given is None else given))
        if self.preset == CLASSIFIER:
            _unsafe_labels(self)
        else:
            _asks(self)
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """`guard_score` and `guard_unscored`."""
        return (*Score.produces(self), reason_column(self.METHOD))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,) in [0, 1], and strings (n,)."""
        from hf_safefilter.model import load

        read = conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []
        load.settle_threads()
        device = load.pick_device(self.device, rank)
        if read and cache.enabled():
            told = {name: value for name, value in self.record().items() if name not in ("model", "columns", "device")}
            space = cache.Space.of(told | {"device": device.type}, f"guard {self.model}")
            done = cache.recall_scores(space, read, lambda rows: self._judge(rows, device))
        else:
            done = self._judge(read, device)
        for reason, count in Counter(filter(None, done.reasons)).items():
            logger.warning("%d rows have no guard score: %s", count, reason)
        if cut := int(done.truncated.sum()):  # what a guard has not read it has not judged, and that is never silent
            logger.warning("%d rows are too long for the guard: it has not read the middle of their responses", cut)
        return dict(zip(self.produces(), (done.vectors[cache.SCORE][:, 0], done.reasons), strict=True))

    def _judge(self, rows: Sequence[Conversation], device: torch.device) -> Reading:
        judge = _by_label if self.preset == CLASSIFIER else _by_verdict
        scores, reasons, truncated = judge(self, [_judged(one) for one in rows], device)
        reasons = [
            reason or ("" if np.isfinite(one) else NON_FINITE) for one, reason in zip(scores, reasons, strict=True)
        ]
        return cache.as_reading(scores, reasons, truncated)

    def _preset(self, architectures: Sequence[str]) -> str:
        from hf_safefilter.model.load import tokenizer
        from hf_safefilter.model.template import template_source

        if self.preset == "auto":
            return recognise(self.model, architectures, template_source(tokenizer(_key(self)), self.chat_template))
        if self.preset not in PRESETS:
            raise OptionError(f"preset {self.preset!r} is not known", fix=f"use 'auto' or one of {', '.join(PRESETS)}")
        return self.preset


def _words(name: str, given: Sequence[str]) -> tuple[str, ...]:
    words = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
        raise OptionError(f"{name}={given!r} is not a list of different texts", fix=f"use e.g. {name}=['...']")
    return words


def _key(step: GuardScore) -> ModelKey:
    from hf_safefilter.model.source import ModelKey

    return ModelKey(step.model, step.revision, step.dtype)


def _judged(row: Conversation) -> Conversation:
    """The turns that a guard is shown."""
    if row.reason:
        return row
    turns = (("user" if role == TEXT else role, content) for role, content in row.messages)
    return Conversation(tuple(turn for turn in turns if turn[0] != "system"))


@lru_cache(maxsize=8)
def _asks(step: GuardScore) -> Asks:
    from hf_safefilter.model.load import tokenizer
    from hf_safefilter.scores.guard.verdict import plan

    if not (step.unsafe and step.safe and step.leads):
        raise OptionError("a guard needs words for unsafe and for safe, and what stands before them", fix="pass all")
    own = tokenizer(_key(step)).chat_template
    template = step.chat_template or (None if own else PRESETS[step.preset].template)
    words = (*step.unsafe, *step.safe)
    if len(set(words)) < len(words):
        raise OptionError("a word cannot mean both unsafe and safe", found=", ".join(words), fix="leave it out of one")
    return plan(tokenizer(_key(step)), words, step.leads, step.guidelines, template)


Judged = tuple[np.ndarray, list[str], np.ndarray]


def _by_verdict(step: GuardScore, rows: Sequence[Conversation], device: torch.device) -> Judged:
    """P(unsafe) of each row, why it has none, and whether it was cut.

    Of several guidelines the largest counts, over earlier answers the mean.
    """
    from hf_safefilter.model import load
    from hf_safefilter.scores.guard.judge import answers
    from hf_safefilter.scores.guard.verdict import put

    key, asks = _key(step), _asks(step)
    found = np.zeros((max(1, len(step.guidelines)), len(rows)))
    reasons, truncated = [""] * len(rows), np.zeros(len(rows), bool)
    for ask, tokens in put(load.tokenizer(key), asks, rows, step.max_length or load.max_tokens(key)):
        reasons = [before or one.reason for before, one in zip(reasons, tokens, strict=True)]
        truncated |= np.array([one.truncated for one in tokens], bool)
        there = [place for place, one in enumerate(tokens) if not one.reason]
        if not there:
            continue
        chances = answers(load.causal_lm(key, device), [tokens[row].ids for row in there], ask.back, asks.tokens)
        weight = np.prod([chances[:, place, word] for place, word in enumerate(ask.given)], axis=0)
        found[ask.guideline, there] += weight * chances[:, -1, : len(step.unsafe)].sum(axis=1)
    return np.where([bool(reason) for reason in reasons], np.nan, found.max(axis=0)), reasons, truncated


def _by_label(step: GuardScore, rows: Sequence[Conversation], device: torch.device) -> Judged:
    """The same of the unsafe label; where labels do not exclude each other, of the likeliest unsafe one."""
    from hf_safefilter.model import load
    from hf_safefilter.model.template import PLAIN
    from hf_safefilter.model.tokens import tokenise
    from hf_safefilter.scores.guard.judge import labels

    key, unsafe = _key(step), _unsafe_labels(step)
    tokenizer = load.tokenizer(key)
    template = step.chat_template or (None if tokenizer.chat_template else PLAIN)
    tokens = tokenise(
        tokenizer, rows, position="last", max_length=step.max_length or load.max_tokens(key), chat_template=template
    )
    there = [place for place, one in enumerate(tokens) if not one.reason]
    found = np.full(len(rows), np.nan)
    if there:
        config = load.model_config(key)
        exclusive = config.num_labels > 1 and config.problem_type != "multi_label_classification"
        chances = labels(load.sequence_classifier(key, device), [tokens[row].ids for row in there], exclusive)
        found[there] = chances[:, unsafe].sum(axis=1) if exclusive else chances[:, unsafe].max(axis=1)
    return found, [one.reason for one in tokens], np.array([one.truncated for one in tokens], bool)


def _unsafe_labels(step: GuardScore) -> list[int]:
    """Numbers of the labels that mean unsafe."""
    from hf_safefilter.model.load import model_config

    names = {str(name).lower(): number for number, name in model_config(_key(step)).id2label.items()}
    chosen = [names[word.lower()] for word in step.unsafe if word.lower() in names]
    if not chosen or (len(chosen) == len(names) and len(names) > 1):
        raise OptionError(
            f"which labels of {step.model} mean unsafe?",
            found=", ".join(map(str, model_config(_key(step)).id2label.values())),
            fix="name some of them, and not all, with unsafe=[...]",
        )
    return chosen
