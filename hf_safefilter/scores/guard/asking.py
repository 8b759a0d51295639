"""Conversations -> scores by a guard at an endpoint: several are asked about at once, and what is answered is kept."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import Message
from hf_safefilter.errors import ModelError
from hf_safefilter.scores.guard.endpoint import NO_ANSWER, REFUSED, Client, Unanswered, is_loopback
from hf_safefilter.scores.guard.policy import Policy
from hf_safefilter.scores.guard.reply import Labels, Reply

logger = logging.getLogger(__name__)

NO_VERDICT = "no_verdict"
"""Reason of a row whose answer is no verdict."""

ALTERNATIVES = (20, 5)
"""How many alternatives to a token servers list: most 20, some no more than 5."""

_SAMPLE = Conversation((Message("user", "Is it raining?"), Message("assistant", "It is.")))
_FAILURES = 8
"""Requests in succession without an answer after which the server counts as gone; more if more are asked at once."""

_spent: dict[str, Counter[str]] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Form:
    """How a server is asked.

    Attributes:
        model: Name of the model.
        labels: How its verdicts read.
        max_tokens: Largest number of tokens of an answer.
        guidelines: Policies for a template that takes one, asked about one by one.
        variables: JSON of further variables for the template, or "".
        policy: Digest of a policy that is the system message; None: the model is a guard that has its own.
    """

    model: str
    labels: Labels
    max_tokens: int
    guidelines: tuple[str, ...] = ()
    variables: str = ""
    policy: str | None = None

    def bodies(self, conversation: Conversation, top_logprobs: int) -> list[dict[str, Any]]:
        """The requests about a conversation of `shown`, one for each guideline."""
        if self.policy is not None:
            conversation = Policy.of(self.policy).put(conversation, self.labels.unsafe[0], self.labels.safe[0])
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": said.role, "content": said.content or ""} for said in conversation.messages],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "stream": False,
        }
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        variables = json.loads(self.variables) if self.variables else {}
        given = [variables | {"guideline": one} for one in self.guidelines] or [variables]
        return [body | {"chat_template_kwargs": one} if one else body for one in given]

    def score(self, reply: Reply, top_logprobs: int) -> float | None:
        """P(unsafe) according to a reply; None if it is no verdict."""
        return self.labels.by_logprobs(reply) if top_logprobs else self.labels.by_words(reply)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a server shows of itself when it is asked about a sample.

    Attributes:
        served: Name of the model, as the server states it; "" if it states none.
        top_logprobs: Number of alternatives to each token that it lists; 0: verdicts are read from words.
    """

    served: str
    top_logprobs: int


def settle(client: Client, form: Form, top_logprobs: int | None) -> Settled:
    """Ask a server about a sample: is it there, does it serve the model, and how can its verdict be read?

    Args:
        client: The server.
        form: How it is asked.
        top_logprobs: The number of alternatives that it must list; None: as many as it does.

    Raises:
        ModelError: It is not there, does not serve the model, or does not give a verdict.
    """
    _warn_of_sending(client.address)
    for top in ALTERNATIVES + (0,) if top_logprobs is None else (top_logprobs,):
        body = form.bodies(_SAMPLE, top)[0]
        try:
            reply = client.ask(body, sample=True)
        except Unanswered as error:
            if error.reason == REFUSED and top and top_logprobs is None:
                continue  # without log-probabilities, or with fewer of them, it may answer
            longest = "pass a smaller `max_tokens=...`: the server takes no answer of that length"
            fix = longest if "max_tokens" in error.fact else _SPELLING
            raise _unfit(client, f"it does not answer about a sample: {error.fact}", fix) from error
        with _lock:
            _count(client.address, reply)
        if form.score(reply, top) is not None:
            return Settled(reply.model or "", top)
        if top and top_logprobs is None and form.score(reply, 0) is not None:
            return Settled(reply.model or "", 0)
        raise _unfit(client, f"its answer about a sample is no verdict: {reply.text[:80]!r}")
    raise AssertionError("unreachable")


_SPELLING = (
    "pass `preset=...` of its family, or `unsafe=...`, `safe=...` and `leads=...` as it spells its verdict; llama.cpp "
    "takes the answer that is to be judged for the beginning of its own unless it is started with "
    "--no-prefill-assistant"
)


def _unfit(client: Client, found: str, fix: str = _SPELLING) -> ModelError:
    return ModelError(f"the model at {client.address} does not judge as expected", found=found, fix=fix)


class Asking:
    """Asks one server about the conversations of one call.

    Args:
        client: The server.
        form: How it is asked.
        settled: What it has shown of itself.
        concurrency: Number of requests at once.
    """

    def __init__(self, client: Client, form: Form, settled: Settled, concurrency: int) -> None:
        self._client, self._form, self._settled, self._concurrency = client, form, settled, concurrency
        self._over: BaseException | None = None
        self._failures = 0
        self._spent = Counter[str]()

    def judge(self, conversations: Sequence[Conversation]) -> tuple[np.ndarray, list[str]]:
        """P(unsafe) of each, float64 (n,), and why it has none, or ""; the largest over several guidelines counts.

        If the server cannot be asked any more, or the user stops it, the rest has the reason `NO_ANSWER`, so that the
        answers that were paid for can be kept; `finish` raises then.
        """
        scores, reasons = np.full(len(conversations), np.nan), [NO_ANSWER] * len(conversations)
        if self._over is not None or not conversations:
            return scores, reasons
        _warn_of_sending(self._client.address)
        self._client.stopped.clear()
        with ThreadPoolExecutor(self._concurrency, "guard") as pool:
            futures = [pool.submit(self._one, one) for one in conversations]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                self._over = next(filter(None, map(_raised, futures)), None)
            except KeyboardInterrupt as error:
                self._over = error
            if self._over is not None:
                self._client.stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
        for index, future in enumerate(futures):
            if future.done() and not future.cancelled() and future.exception() is None:
                scores[index], reasons[index] = future.result()
        return scores, reasons

    def finish(self) -> None:
        """Log what the answers have cost.

        Raises:
            ModelError: The server could not be asked any more.
            KeyboardInterrupt: The user has stopped it.
        """
        if self._spent["requests"]:
            logger.info(
                "%s at %s gave %s answers: %s tokens in, %s out%s",
                self._form.model, self._client.address,
                *(f"{self._spent[name]:,}" for name in ("requests", "tokens_in", "tokens_out")),
                f" ({self._spent['uncounted']} were not counted by the server)" if self._spent["uncounted"] else "",
            )  # fmt: skip
        if self._over is not None:
            raise self._over

    def _one(self, conversation: Conversation) -> tuple[float, str]:
        """P(unsafe) of one, and why it has none, or ""."""
        found: list[float] = []
        for body in self._form.bodies(conversation, self._settled.top_logprobs):
            try:
                reply = self._client.ask(body)
            except Unanswered as error:
                if error.reason == NO_ANSWER:
                    self._failed(error.fact)
                return np.nan, error.reason
            with _lock:
                self._failures = 0
                self._spent += _count(self._client.address, reply)
            self._require_same(reply)
            score = self._form.score(reply, self._settled.top_logprobs)
            if score is None:
                return np.nan, NO_VERDICT
            found.append(score)
        return max(found), ""

    def _failed(self, fact: str) -> None:
        with _lock:
            self._failures += 1
            gone = self._failures >= max(_FAILURES, 2 * self._concurrency)
        if gone and not self._client.stopped.is_set():
            raise ModelError(
                f"the server at {self._client.address} does not answer any more",
                found=f"{fact}, {self._failures} times in succession",
                fix="see what it says itself, and run the same command again: answers are kept in the row cache, and "
                "no row is asked twice",
            )

    def _require_same(self, reply: Reply) -> None:
        if (reply.model or "") != self._settled.served:
            raise ModelError(
                f"the server at {self._client.address} answers with another model than before",
                found=f"{reply.model or 'no name'} instead of {self._settled.served or 'no name'}",
                fix="score with one model: name it in `model=...`",
            )


def spent(address: str) -> dict[str, int]:
    """What the answers of a server have cost in this process: ``requests``, ``tokens_in`` and ``tokens_out``."""
    with _lock:
        return {name: _spent.get(address, Counter())[name] for name in ("requests", "tokens_in", "tokens_out")}


def _count(address: str, reply: Reply) -> Counter[str]:
    """What one reply has cost, added to what others have; the lock is held."""
    cost = Counter(requests=1)
    if reply.usage is None:
        cost["uncounted"] = 1
    else:
        cost += Counter(tokens_in=reply.usage.prompt_tokens, tokens_out=reply.usage.completion_tokens)
    _spent.setdefault(address, Counter()).update(cost)
    return cost


def _raised(future: Future[Any]) -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


@lru_cache(maxsize=64)
def _warn_of_sending(address: str) -> None:
    """Once a process, before anything leaves this machine."""
    if not is_loopback(address):
        how = "" if address.startswith("https:") else ", unencrypted"
        logger.warning("rows are sent to %s, which is another machine%s", address, how)
