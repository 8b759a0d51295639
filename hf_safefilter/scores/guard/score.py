"""GuardScore: the verdict of a guard model on the answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import RowVectors
from hf_safefilter.checks import require_choice, require_whole
from hf_safefilter.columns import reason_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.conversations import Conversation, conversations
from hf_safefilter.data.ragged import offsets_of
from hf_safefilter.data.spans import SPAN
from hf_safefilter.errors import OptionError
from hf_safefilter.scores.base import Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.guard.presets import CLASSIFIER, PRESETS, recognise
from hf_safefilter.scores.guard.shown import shown
from hf_safefilter.step import Step

if TYPE_CHECKING:
    import torch

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.guard.verdict import Questions

logger = logging.getLogger(__name__)

NON_FINITE = "non_finite"
"""Reason of a row for which the guard's probability is not finite."""

TURN = "guard_turn"
"""Column with the index, among the messages of a row, of the answer with the largest score; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class GuardScore(Score):
    """P(unsafe) of an answer by a guard model: the share of its unsafe words in the logits of the verdict.

    Each answer is judged with the turns before it (see `guard.shown`), rendered by the guard's own chat template; the
    largest score counts, and `guard_turn` says whose it is. Nothing is generated. `guard_unscored` says why a row has
    no score; a row of which an answer cannot be judged whole has none.

    Args:
        model: Hub id or local folder of the guard: a causal model, or one with a classification head.
        preset: One of `PRESETS`, or "auto" to choose one by the guard's head, chat template or name.
        unsafe: Words (or label names) that mean unsafe, instead of the preset's.
        safe: Words that mean safe, instead of the preset's.
        leads: What the guard writes before each of its answers, of which the last one is the verdict.
        guidelines: Policies for a guard that judges by one (ShieldGemma), one forward pass each; the largest score
            counts.
        revision: Branch, tag or commit; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        max_length: Largest number of tokens that are judged at once; the guard's own limit if None. A longer row has
            no score (``too_long``).
        columns: Which columns hold prompt and response, for rows whose shape is not recognised.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available one if None.
        chat_template: For a guard without a chat template: a Jinja template, or "plain".

    Raises:
        OptionError: There is no such preset, none that fits the guard, or the classifier has no such labels.
        ModelError: The guard cannot be read, or has no tokens that distinguish its verdicts.

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
    algorithm: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        from hf_safefilter.model import load
        from hf_safefilter.model.source import ModelKey

        set_field = object.__setattr__
        if self.max_length is not None:
            require_whole("max_length", self.max_length, least=2)
            set_field(self, "max_length", int(self.max_length))
        set_field(self, "model", str(self.model))
        set_field(self, "columns", as_pairs(self.columns))
        revision = load.resolve_revision(self.model, self.revision)
        set_field(self, "revision", revision)
        config = load.model_config(ModelKey(self.model, revision, "float32"))
        stored = getattr(config.get_text_config(), "dtype", None)
        set_field(self, "dtype", load.pick_dtype(self.dtype, load.pick_device(self.device, None), stored))
        set_field(self, "preset", self._preset(config.architectures or ()))
        for name in ("unsafe", "safe", "leads", "guidelines"):
            words = getattr(self, name)
            set_field(self, name, _words(name, getattr(PRESETS[self.preset], name) if words is None else words))
        if self.preset == CLASSIFIER:
            _unsafe_labels(self)
        else:
            _questions(self)
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """`guard_score`, `guard_turn` and `guard_unscored`."""
        return (*Score.produces(self), TURN, reason_column(self.METHOD))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """float32 (n,) in [0, 1], int32 (n,), and strings (n,)."""
        from hf_safefilter.model import load

        rows = conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []
        load.single_thread_after_fork()
        device = load.pick_device(self.device, rank)
        if rows and cache.enabled():
            facts = {name: value for name, value in self.record().items() if name not in ("model", "columns", "device")}
            space = cache.Space.of(facts | {"device": device.type}, f"guard {self.model}")
            judged = cache.recall_scores(space, rows, lambda new: self._judge(new, device))
        else:
            judged = self._judge(rows, device)
        for reason, count in Counter(filter(None, judged.reasons)).items():
            logger.warning("%d rows have no guard score: %s", count, reason)
        scores, at = judged.of(cache.SCORE).largest()
        turns = np.append(judged.spans["turn"], np.int32(-1))[np.where(at < 0, -1, judged.offsets[:-1] + at)]
        return dict(zip(self.produces(), (scores, turns, judged.reasons), strict=True))

    def _judge(self, rows: Sequence[Conversation], device: torch.device) -> RowVectors:
        """A score for each answer of each row that can be judged whole."""
        judge = _by_label if self.preset == CLASSIFIER else _by_verdict
        asked = [[] if row.reason else shown(row) for row in rows]
        scores, faults = judge(self, [said for answers in asked for _, said in answers], device)
        offsets = offsets_of(np.array([len(answers) for answers in asked], dtype=np.int64))
        spans = np.zeros(len(scores), SPAN)
        spans["turn"] = [turn for answers in asked for turn, _ in answers]
        reasons = np.empty(len(rows), dtype=object)
        for index, row in enumerate(rows):
            own = slice(int(offsets[index]), int(offsets[index + 1]))
            unjudged = NON_FINITE if not np.isfinite(scores[own]).all() else ""
            reasons[index] = row.reason or next(filter(None, faults[own]), unjudged)
        found = RowVectors(
            offsets, spans, {cache.SCORE: scores.astype(np.float32)[:, None]}, np.zeros(len(rows), bool), reasons
        )
        return found.without(reasons != "", reasons)

    def _preset(self, architectures: Sequence[str]) -> str:
        from hf_safefilter.model.chat_template import template_source
        from hf_safefilter.model.load import tokenizer

        if self.preset == "auto":
            return recognise(self.model, architectures, template_source(tokenizer(_key(self)), self.chat_template))
        require_choice("preset", self.preset, ("auto", *PRESETS))
        return self.preset


def _words(name: str, value: Sequence[str]) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
        fix = f'use for example `{name}=["no"]`'
        raise OptionError(f"`{name}={value!r}` is not a list of different texts", fix=fix)
    return words


def _key(step: GuardScore) -> ModelKey:
    from hf_safefilter.model.source import ModelKey

    return ModelKey(step.model, cast("str", step.revision), step.dtype)  # it was resolved when the step was made


@lru_cache(maxsize=8)
def _questions(step: GuardScore) -> Questions:
    from hf_safefilter.model.load import tokenizer
    from hf_safefilter.scores.guard.verdict import plan

    if not (step.unsafe and step.safe and step.leads):
        raise OptionError(
            "a guard needs words for unsafe, words for safe, and the text before them",
            fix="pass `unsafe=...`, `safe=...` and `leads=...`",
        )
    own = tokenizer(_key(step)).chat_template
    template = step.chat_template or (None if own else PRESETS[step.preset].template)
    words = (*step.unsafe, *step.safe)
    if len(set(words)) < len(words):
        raise OptionError(
            "a word cannot mean both unsafe and safe", found=", ".join(words), fix="remove it from one of them"
        )
    return plan(tokenizer(_key(step)), words, step.leads, step.guidelines or (), template)


Judged = tuple[np.ndarray, list[str]]
"""P(unsafe) of each conversation, float64 (n,), and why it has none, or ""."""


def _by_verdict(step: GuardScore, asked: Sequence[Conversation], device: torch.device) -> Judged:
    """The largest score over several guidelines, the weighted mean over answers before the verdict."""
    from hf_safefilter.model import load
    from hf_safefilter.scores.guard.judge import answers
    from hf_safefilter.scores.guard.verdict import tokenised

    key, questions = _key(step), _questions(step)
    n_unsafe = len(step.unsafe or ())
    scores = np.zeros((max(1, len(step.guidelines or ())), len(asked)))
    reasons = [""] * len(asked)
    for question, tokens in tokenised(load.tokenizer(key), questions, asked, step.max_length or load.max_tokens(key)):
        reasons = [reason or row.reason for reason, row in zip(reasons, tokens, strict=True)]
        readable = [index for index, row in enumerate(tokens) if not row.reason]
        if not readable:
            continue
        ids = [tokens[index].ids for index in readable]
        probabilities = answers(load.causal_lm(key, device), ids, question.back, questions.tokens)
        weight = np.prod([probabilities[:, answer, word] for answer, word in enumerate(question.earlier)], axis=0)
        scores[question.guideline, readable] += weight * probabilities[:, -1, :n_unsafe].sum(axis=1)
    return np.where([bool(reason) for reason in reasons], np.nan, scores.max(axis=0)), reasons


def _by_label(step: GuardScore, asked: Sequence[Conversation], device: torch.device) -> Judged:
    """The sum over the unsafe labels, or the largest of them if labels do not exclude each other."""
    from hf_safefilter.model import load
    from hf_safefilter.model.chat_template import PLAIN
    from hf_safefilter.scores.guard.judge import labels
    from hf_safefilter.scores.guard.verdict import read_whole

    key, unsafe = _key(step), _unsafe_labels(step)
    tokenizer = load.tokenizer(key)
    template = step.chat_template or (None if tokenizer.chat_template else PLAIN)
    tokens = read_whole(tokenizer, asked, template, step.max_length or load.max_tokens(key))
    readable = [index for index, row in enumerate(tokens) if not row.reason]
    scores = np.full(len(asked), np.nan)
    if readable:
        config = load.model_config(key)
        exclusive = (config.num_labels or 0) > 1 and config.problem_type != "multi_label_classification"
        ids = [tokens[index].ids for index in readable]
        probabilities = labels(load.sequence_classifier(key, device), ids, exclusive)[:, unsafe]
        scores[readable] = probabilities.sum(axis=1) if exclusive else probabilities.max(axis=1)
    return scores, [row.reason for row in tokens]


def _unsafe_labels(step: GuardScore) -> list[int]:
    """Numbers of the labels that mean unsafe."""
    from hf_safefilter.model.load import model_config

    names = {int(number): str(name) for number, name in (model_config(_key(step)).id2label or {}).items()}
    numbers = {name.lower(): number for number, name in names.items()}
    chosen = [numbers[word.lower()] for word in step.unsafe or () if word.lower() in numbers]
    if not chosen or (len(chosen) == len(numbers) and len(numbers) > 1):
        raise OptionError(
            f"it is not clear which labels of {step.model} mean unsafe",
            found=", ".join(names.values()),
            fix="name some of them, and not all, in `unsafe=...`",
        )
    return chosen
