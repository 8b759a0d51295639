"""GuardScore: the verdict of a guard model on the answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import RowVectors
from hf_safefilter.checks import require_choice, require_number, require_whole
from hf_safefilter.columns import reason_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.conversations import Conversation, conversations
from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.scores.base import Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.guard.policy import Policy
from hf_safefilter.scores.guard.presets import CLASSIFIER, POLICY, PRESETS, all_words, checked_words, recognise
from hf_safefilter.scores.guard.shown import Judged, each_answer
from hf_safefilter.step import Step, fields_of

if TYPE_CHECKING:
    import torch

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.guard.asking import Form
    from hf_safefilter.scores.guard.endpoint import Client
    from hf_safefilter.scores.guard.verdict import Questions

logger = logging.getLogger(__name__)

TURN = "guard_turn"
"""Column with the index, among the messages of a row, of the answer with the largest score; -1 where there is none."""

_OF_ENDPOINTS = ("endpoint", "top_logprobs", "served", "max_tokens", "concurrency", "timeout")
_READ_HERE = ("revision", "dtype", "max_length", "device", "chat_template")
_MOST, _MOST_WITH_POLICY = 32, 4096
"""Tokens of an answer: a verdict stands among the first, unless the model reasons before it."""


@dataclass(frozen=True, slots=True)
class GuardScore(Score):
    """P(unsafe) of an answer by a guard model: the share of its unsafe words in the logits of the verdict.

    Each answer is judged with the turns before it (see `guard.shown`), rendered by the guard's own chat template; the
    largest score counts, and `guard_turn` says whose it is. `guard_unscored` says why a row has no score; a row of
    which an answer cannot be judged whole has none.

    The guard is read here, and then nothing is generated; or it is asked at an `endpoint`, any server that speaks
    OpenAI's chat protocol (vLLM, llama.cpp, TGI, Ollama, transformers serve). That server renders the rows, has to keep
    control tokens in them from being control tokens, and its weights cannot be pinned: nobody can verify such a score.
    Its key, if it wants one, is read from the environment variable HF_SAFEFILTER_GUARD_KEY.

    Args:
        model: Hub id or local folder of the guard: a causal model, or one with a classification head; with `endpoint`
            the name under which the server knows it.
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
        policy: A policy of your own, in words, or a file with them: any model that follows instructions (and
            gpt-oss-safeguard) judges by it and answers with the first of the words `unsafe` and `safe`. The step holds
            its digest. A model that reasons before it answers needs an endpoint.
        endpoint: Address of a server, e.g. ``http://127.0.0.1:8000/v1``: rows are sent to it. It is asked about a
            sample when the step is made.
        top_logprobs: With `endpoint`, how many alternatives to each token the server lists; 0 reads the verdict from
            the words of the answer, as 1 or 0. None: as many as it does.
        served: With `endpoint`, the name of the model as the server states it; asked for if None.
        max_tokens: With `endpoint`, the largest number of tokens of an answer; 32, or 4096 with a policy, if None.
        concurrency: With `endpoint`, the number of requests at once, for each process.
        timeout: With `endpoint`, the seconds that one try may take.

    Raises:
        OptionError: There is no such preset, none that fits the guard, or the classifier has no such labels; an option
            belongs to guards read here, or to those at an endpoint, alone.
        MissingError: There is no such policy.
        ModelError: The guard cannot be read, or has no tokens that distinguish its verdicts; the server cannot be
            reached, or gives no verdict.

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
    policy: str | Path | None = None
    endpoint: str | None = None
    top_logprobs: int | None = None
    served: str | None = None
    max_tokens: int | None = None
    concurrency: int = 16
    timeout: float = 120.0
    algorithm: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "model", str(self.model))
        set_field(self, "columns", as_pairs(self.columns))
        if self.policy is not None:
            if self.preset not in ("auto", POLICY):
                raise OptionError(
                    "a guard of a family has a policy of its own", fix="leave `policy=...` or `preset=...` out"
                )
            set_field(self, "policy", Policy.named(self.policy).digest)
            set_field(self, "preset", POLICY)
        _refuse_options(self)
        if self.endpoint is None:
            self._read_here()
        else:
            self._settle()
        Step.__post_init__(self)

    def _read_here(self) -> None:
        """Pin the options of a guard that is read in this process."""
        from hf_safefilter.model import load
        from hf_safefilter.model.source import ModelKey

        set_field = object.__setattr__
        if self.max_length is not None:
            require_whole("max_length", self.max_length, least=2)
            set_field(self, "max_length", int(self.max_length))
        revision = load.resolve_revision(self.model, self.revision)
        set_field(self, "revision", revision)
        config = load.model_config(ModelKey(self.model, revision, "float32"))
        stored = getattr(config.get_text_config(), "dtype", None)
        set_field(self, "dtype", load.pick_dtype(self.dtype, load.pick_device(self.device, None), stored))
        set_field(self, "preset", self._preset(config.architectures or ()))
        self._take_words()
        if self.preset == CLASSIFIER:
            _unsafe_labels(self)
        else:
            _questions(self)

    def _settle(self) -> None:
        """Pin the options of a guard at an endpoint; the server is asked for those that only it knows."""
        from hf_safefilter.scores.guard.asking import settle
        from hf_safefilter.scores.guard.endpoint import checked_address

        set_field = object.__setattr__
        set_field(self, "endpoint", checked_address(self.endpoint))
        require_whole("concurrency", self.concurrency, least=1, most=1024)
        require_number("timeout", self.timeout, above=0)
        if self.max_tokens is None:
            set_field(self, "max_tokens", _MOST_WITH_POLICY if self.policy is not None else _MOST)
        require_whole("max_tokens", self.max_tokens, least=1)
        if self.top_logprobs is not None:
            require_whole("top_logprobs", self.top_logprobs, least=0)
        if self.preset == "auto":
            set_field(self, "preset", recognise(self.model, (), None))
        require_choice("preset", self.preset, [name for name in PRESETS if name != CLASSIFIER])
        self._take_words()
        all_words(self.unsafe or (), self.safe or (), self.leads or (), loosely=True)
        if self.served is None or self.top_logprobs is None:
            settled = settle(self._client(), _form(self), self.top_logprobs)
            if self.served not in (None, settled.served):
                raise ModelError(
                    f"the server at {self.endpoint} serves another model",
                    found=settled.served,
                    fix="correct `served=...`",
                )
            set_field(self, "served", settled.served)
            set_field(self, "top_logprobs", settled.top_logprobs)

    def _take_words(self) -> None:
        if self.preset == POLICY and self.policy is None:
            raise OptionError(f"{self.model} judges by a policy", fix="pass it: `policy=...`, in words or as a file")
        for name in ("unsafe", "safe", "leads", "guidelines"):
            words = getattr(self, name)
            words = checked_words(name, getattr(PRESETS[self.preset], name) if words is None else words)
            object.__setattr__(self, name, words)

    def _client(self) -> Client:
        from hf_safefilter.scores.guard.endpoint import client

        return client(cast("str", self.endpoint), self.timeout, self.concurrency)

    def record(self) -> dict[str, Any]:
        """Every field that this guard has; one that is read here has none of those for an endpoint, and the reverse."""
        foreign = {
            *(_OF_ENDPOINTS if self.endpoint is None else _READ_HERE),
            *(("policy",) if self.policy is None else ()),
        }
        return {name: value for name, value in Score.record(self).items() if name not in foreign}

    def spent(self) -> dict[str, int]:
        """What the answers of the endpoint have cost in this process; empty for a guard that is read here."""
        if self.endpoint is None:
            return {}
        from hf_safefilter.scores.guard.asking import spent

        return spent(self.endpoint)

    def produces(self) -> tuple[str, ...]:
        """`guard_score`, `guard_turn` and `guard_unscored`."""
        return (*Score.produces(self), TURN, reason_column(self.METHOD))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """float32 (n,) in [0, 1], int32 (n,), and strings (n,)."""
        rows = conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []
        judged = self._asked(rows) if self.endpoint is not None else self._read(rows, rank)
        for reason, count in Counter(filter(None, judged.reasons)).items():
            logger.warning("%d rows have no guard score: %s", count, reason)
        scores, at = judged.of(cache.SCORE).largest()
        turns = np.append(judged.spans["turn"], np.int32(-1))[np.where(at < 0, -1, judged.offsets[:-1] + at)]
        return dict(zip(self.produces(), (scores, turns, judged.reasons), strict=True))

    def _read(self, rows: list[Conversation], rank: int | None) -> RowVectors:
        """The scores of rows by a guard that is read here."""
        from hf_safefilter.model import load

        load.single_thread_after_fork()
        device = load.pick_device(self.device, rank)
        if not rows or not cache.enabled():
            return self._judge(rows, device)
        facts = {name: value for name, value in self.record().items() if name not in ("model", "columns", "device")}
        space = cache.Space.of(facts | {"device": device.type}, f"guard {self.model}")
        return cache.recall_scores(space, rows, lambda new: self._judge(new, device))

    def _judge(self, rows: Sequence[Conversation], device: torch.device) -> RowVectors:
        """A score for each answer of each row that can be judged whole."""
        judge = _by_label if self.preset == CLASSIFIER else _by_verdict
        put = self._put()
        return each_answer(rows, lambda asked: judge(self, [put(one) for one in asked], device))

    def _put(self) -> Callable[[Conversation], Conversation]:
        """What the model is asked about a conversation: this itself, or whether it violates the policy."""
        if self.policy is None:
            return lambda asked: asked
        policy, unsafe, safe = Policy.of(cast("str", self.policy)), self.unsafe or (), self.safe or ()
        return lambda asked: policy.put(asked, unsafe[0], safe[0])

    def _asked(self, rows: list[Conversation]) -> RowVectors:
        """The scores of rows by a guard at an endpoint: answers are kept as they come, whatever ends the work."""
        from hf_safefilter.scores.guard.asking import Asking, Settled
        from hf_safefilter.scores.guard.endpoint import PASSING

        settled = Settled(cast("str", self.served), cast("int", self.top_logprobs))
        asking = Asking(self._client(), _form(self), settled, self.concurrency)
        try:
            if not rows or not cache.enabled():
                return each_answer(rows, asking.judge)
            changing_nothing = ("columns", "concurrency", "timeout")
            facts = {name: value for name, value in self.record().items() if name not in changing_nothing}
            space = cache.Space.of(facts, f"guard {self.model} at {self.endpoint}")
            return cache.recall_scores(
                space, rows, lambda new: each_answer(new, asking.judge), passing=PASSING, at_once=2 * self.concurrency
            )
        finally:
            asking.finish()

    def _preset(self, architectures: Sequence[str]) -> str:
        from hf_safefilter.model.chat_template import template_source
        from hf_safefilter.model.load import tokenizer

        if self.preset == "auto":
            return recognise(self.model, architectures, template_source(tokenizer(_key(self)), self.chat_template))
        require_choice("preset", self.preset, ("auto", *PRESETS))
        return self.preset


def _refuse_options(step: GuardScore) -> None:
    """Raise if an option is set that has no meaning where this guard is."""
    for option in fields_of(step):
        foreign = _OF_ENDPOINTS if step.endpoint is None else _READ_HERE
        if option.name in foreign and getattr(step, option.name) != option.default:
            where = "at an endpoint" if step.endpoint is None else "that is read here"
            raise OptionError(
                f"`{option.name}=...` is an option of a guard {where}",
                fix=f"leave it out, or {'pass' if step.endpoint is None else 'leave out'} `endpoint=...`",
            )


def _form(step: GuardScore) -> Form:
    from hf_safefilter.scores.guard.asking import Form
    from hf_safefilter.scores.guard.reply import Labels

    labels = Labels(tuple(step.unsafe or ()), tuple(step.safe or ()), (step.leads or ("",))[-1])
    policy, variables = cast("str | None", step.policy), PRESETS[step.preset].variables
    return Form(step.model, labels, cast("int", step.max_tokens), tuple(step.guidelines or ()), variables, policy)


def _key(step: GuardScore) -> ModelKey:
    from hf_safefilter.model.source import ModelKey

    return ModelKey(step.model, cast("str", step.revision), step.dtype)  # it was resolved when the step was made


@lru_cache(maxsize=8)
def _questions(step: GuardScore) -> Questions:
    from hf_safefilter.model.load import tokenizer
    from hf_safefilter.scores.guard.verdict import plan

    words = all_words(step.unsafe or (), step.safe or (), step.leads or ())
    own = tokenizer(_key(step)).chat_template
    template = step.chat_template or (None if own else PRESETS[step.preset].template)
    leads, form = step.leads or (), PRESETS[step.preset]
    return plan(tokenizer(_key(step)), words, leads, step.guidelines or (), template, form.variables)


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
