"""The verdict in a server's reply: from the log-probabilities of its first token, or else from the words of the answer.

Replies are untrusted: they are parsed by their types, and what is not there is no verdict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from hf_safefilter.scores.guard.presets import bare

_THOUGHT = "</think>"
_MARKUP = r"[\s*`\"'_]*"
_ENDS = re.compile(r"""[ \t]*[*`"'_.!)\]}]*[ \t]*(</[^<>\n]*>)?[ \t]*(\n|$)""")
"""What may follow the word of a verdict of safety on its line: "Safe or unsafe? I cannot tell" is none."""

_LONGEST_NAME = 200


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Alternative(_Part):
    """A token that may stand at a place."""

    token: str
    logprob: float


class Token(Alternative):
    """A token of the answer, and the likeliest ones at its place."""

    top_logprobs: list[Alternative] | None = None


class _Logprobs(_Part):
    content: list[Token] | None = None


class _Message(_Part):
    content: str | None = None


class _Choice(_Part):
    message: _Message
    logprobs: _Logprobs | None = None


class _Usage(_Part):
    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class Reply(_Part):
    """A chat completion, as far as it is read."""

    model: str | None = Field(None, max_length=_LONGEST_NAME)
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        """The answer, without what servers keep apart of the reasoning before it."""
        return self.choices[0].message.content or ""

    @property
    def tokens(self) -> list[Token]:
        """The tokens of the answer, and of the reasoning before it; empty if the server gives none."""
        logprobs = self.choices[0].logprobs
        return (logprobs.content or []) if logprobs is not None else []


class _Named(_Part):
    id: str = Field(max_length=_LONGEST_NAME)


class Models(_Part):
    """The models that a server lists."""

    data: list[_Named]


class _ErrorText(_Part):
    message: str | None = None


class Refusal(_Part):
    """What a server says of a refusal, in the forms that they have."""

    error: _ErrorText | str | None = None
    detail: str | None = None
    message: str | None = None

    @property
    def text(self) -> str:
        """What it says, or ""."""
        error = self.error.message if isinstance(self.error, _ErrorText) else self.error
        return error or self.detail or self.message or ""


@dataclass(frozen=True, slots=True)
class Labels:
    """How a verdict reads; case and white space do not matter.

    Attributes:
        unsafe: Words that mean unsafe.
        safe: Words that mean safe.
        lead: What stands before the verdict, unless it stands first in the answer.
    """

    unsafe: tuple[str, ...]
    safe: tuple[str, ...]
    lead: str

    def _words(self) -> list[tuple[str, bool]]:
        """The bare words, and whether they mean unsafe."""
        return [(bare(word), True) for word in self.unsafe] + [(bare(word), False) for word in self.safe]

    def _sides(self, beginning: str) -> set[bool]:
        """What a bare text may go on to mean: unsafe (True), safe (False), both or neither."""
        return {unsafe for word, unsafe in self._words() if beginning and word.startswith(beginning)}

    def _cut(self, text: str) -> str:
        """The longest word that a bare text begins with; the text itself if it begins with none."""
        whole = [word for word, _ in self._words() if text.startswith(word)]
        return max(whole, key=len) if whole else text

    def place(self, text: str) -> tuple[int, int] | None:
        """Where in an answer the word of its verdict begins and ends; None if it has no verdict.

        A verdict of safety stands alone on its line, and nowhere does another say unsafe.
        """
        words = sorted((*self.unsafe, *self.safe), key=len, reverse=True)
        word = rf"{_MARKUP}({'|'.join(map(re.escape, words))})(?!\w)"
        start = text.rfind(_THOUGHT) + len(_THOUGHT) if _THOUGHT in text else 0
        if lead := self.lead.strip():
            led = [found.span(1) for found in re.compile(re.escape(lead) + word, re.IGNORECASE).finditer(text, start)]
            if led:
                return self._trusted(text, led)
        found = re.compile(word, re.IGNORECASE).match(text, start)
        return None if found is None else self._trusted(text, [found.span(1)])

    def _trusted(self, text: str, places: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """The first of the places of verdicts that agree; None if they do not, or if more is said than "safe"."""
        sides = {self._is_unsafe(text[slice(*place)]) for place in places}
        if len(sides) > 1 or (False in sides and not all(_ENDS.match(text, end) for _, end in places)):
            return None
        return places[0]

    def _is_unsafe(self, word: str) -> bool:
        return any(unsafe for known, unsafe in self._words() if known == bare(word))

    def by_words(self, reply: Reply) -> float | None:
        """1 for an answer that says unsafe, 0 for one that says safe, None for any other."""
        place = self.place(reply.text)
        if place is None:
            return None
        return float(self._is_unsafe(reply.text[slice(*place)]))

    def by_logprobs(self, reply: Reply) -> float | None:
        """P(unsafe) among the words of the verdict, at the first token that tells them apart; None if there is none.

        A word counts with the likeliest token that begins it; one that is not among those listed counts as zero.
        """
        place = self.place(reply.text)
        if place is None:
            return None
        tokens = [bare(token.token) for token in reply.tokens]
        joined = "".join(tokens)
        at = _where(joined, bare(reply.text), len(bare(reply.text[: place[0]])))
        if at is None:
            return None
        stop = 0
        for index, token in enumerate(tokens):
            start, stop = stop, stop + len(token)
            if stop <= at:
                continue
            if start < at:  # what ends before the verdict ends with it in one token
                head, said = token[: at - start], ""
            else:
                head, said = "", joined[at:start]
            sides = self._sides(self._cut(said + token[len(head) :]))
            if len(sides) == 1:
                return self._share(reply.tokens[index], head, said)
            if not sides:
                return None
        return None

    def _share(self, token: Token, head: str, said: str) -> float | None:
        """P(unsafe) at a token; `head` begins it, and `said` is what was said of the verdict before it.

        None where the server lists no alternative to the token: alone it would always be sure.
        """
        if len(token.top_logprobs or ()) < 2:
            return None
        listed: dict[str, float] = {}
        for one in (token, *(token.top_logprobs or ())):
            text = bare(one.token)
            if text.startswith(head) and math.isfinite(one.logprob):
                rest = self._cut(said + text[len(head) :])
                listed[rest] = max(listed.get(rest, -math.inf), min(one.logprob, 0.0))
        chosen: dict[bool, set[str]] = {True: set(), False: set()}
        for word, unsafe in self._words():
            begins = [text for text in listed if len(self._sides(text)) == 1 and word.startswith(text)]
            if begins:
                chosen[unsafe].add(max(begins, key=lambda text: listed[text]))
        mass = {unsafe: sum(math.exp(listed[text]) for text in texts) for unsafe, texts in chosen.items()}
        total = mass[True] + mass[False]
        return mass[True] / total if total > 0 else None


def _where(all_said: str, answer: str, at: int) -> int | None:
    """The place among all that was said of place `at` in the answer, which comes last."""
    begin = all_said.rfind(answer)
    if begin < 0 and all_said.startswith(answer[: at + 1]):  # later letters may be spread over several tokens
        begin = 0
    return begin + at if begin >= 0 else None
