"""Control tokens: which they are, and how text that spells one is kept from becoming one.

Text of a row that spells a control token is put between two private marks before it is rendered, and what stands
between the marks is encoded as ordinary words: as transformers' ``sanitize_control_tokens`` does, with the same ids.
Three ways past that are shut too: tokens that a template builds from pieces, words that a normaliser turns into a
control token, and text that makes one together with what the template puts beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# transformers' own marks: a template that looks at them sees the same thing there and here.
OPEN, CLOSE = "\U000f0000", "\U000f0001"

Offsets = list[tuple[int, int]]


class Controls:
    """The control tokens of a tokenizer under one template.

    They are the special tokens, and those that the tokenizer's author lists as ``chat_control_tokens``; where there is
    no such list, all added tokens but whitespace that the template writes.

    Args:
        tokenizer: a fast one.
        written: everything that the template is known to write.
        seams: what the template puts right before and right after a turn's text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str, seams: Iterable[tuple[str, str]] = ()) -> None:
        listed = tokenizer.chat_control_tokens

        def rules(word: str) -> bool:
            return word in listed if listed is not None else word in written and not word.isspace()

        added = tokenizer.added_tokens_decoder.items()
        self._words = {
            n: token.content for n, token in added if token.content and (token.special or rules(token.content))
        }
        longest_first = sorted(self._words.values(), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # A template that splits a text can part two marks, and put its own control tokens between them.
        self._marks = re.compile(f"{OPEN}({self._pattern.pattern}){CLOSE}|[{OPEN}{CLOSE}]")
        # The token for unknown words comes of ordinary text and says nothing, unless it serves as another too (GPT-2).
        unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self._forbidden = self._words.keys() - unknown
        self._normalises = tokenizer.backend_tokenizer.normalizer is not None
        self._joins = any(self._completes(before, after) for before, after in set(seams))

    def mark(self, text: str, apart: bool = True) -> str:
        """`text` with marks around the control tokens that it spells, and where needed at its two ends.

        Args:
            text: Words of a row.
            apart: Whether its ends may be marked; not for words that a template compares with its own.
        """
        if OPEN in text or CLOSE in text:
            text = text.replace(OPEN, "").replace(CLOSE, "")
        marked = self._pattern.sub(f"{OPEN}\\g<0>{CLOSE}", text)
        # A lone mark is dropped by the encoding, but keeps its two sides apart.
        return f"{CLOSE}{marked}{CLOSE}" if apart and self._joins else marked

    def smuggled(self, ids: Sequence[int], offsets: Offsets, text: str) -> bool:
        """Whether a control token among `ids` came of other letters than its own, such as full-width ones."""
        return self._normalises and any(
            one in self._forbidden and text[begin:end].strip() != self._words[one].strip()
            for one, (begin, end) in zip(ids, offsets, strict=True)
        )

    def encode(self, backend: Tokenizer, text: str) -> tuple[list[int], Offsets] | None:
        """Ids and places of a marked text: words between marks as ordinary text, the rest as it is.

        None where the tokenizer makes a control token out of ordinary words, so that it cannot be kept out.
        """
        ids: list[int] = []
        offsets: Offsets = []
        at = 0
        for match in [*self._marks.finditer(text), None]:
            piece = text[at : match.start() if match else None]
            if piece:
                found, places = _encode_piece(backend, piece, first=at == 0)
                if self.smuggled(found, places, piece):
                    return None
                ids += found
                offsets += [(at + begin, at + end) for begin, end in places]
            if match and match.group(1):
                found = _encode_words(backend, match.group(1))
                if not self._forbidden.isdisjoint(found):
                    return None
                ids += found
                offsets += [match.span(1)] * len(found)
            at = match.end() if match else at
        return ids, offsets

    def _completes(self, before: str, after: str) -> bool:
        """Whether some text between `before` and `after` would make a control token with them."""
        return any(
            before.endswith(word[:cut]) or after.startswith(word[cut:])
            for word in self._words.values()
            for cut in range(1, len(word))
        )


def _encode_piece(backend: Tokenizer, text: str, first: bool) -> tuple[list[int], Offsets]:
    """A piece in the middle is encoded after a newline, whose tokens are taken off again: that keeps SentencePiece
    from putting its start-of-text space there."""
    if not first:
        newline = backend.encode("\n", add_special_tokens=False).ids
        whole = backend.encode("\n" + text, add_special_tokens=False)
        if whole.ids[: len(newline)] == newline:
            places = [(max(0, begin - 1), max(0, end - 1)) for begin, end in whole.offsets[len(newline) :]]
            return whole.ids[len(newline) :], places
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def _encode_words(backend: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which no added token is seen: the backend's switch for that leaves all but special ones in."""

    def bare(words: str) -> list[int]:
        words = words if backend.normalizer is None else backend.normalizer.normalize_str(words)
        split = backend.pre_tokenizer
        parts = [words] if split is None else [part for part, _ in split.pre_tokenize_str(words)]
        return [token.id for part in parts for token in backend.model.tokenize(part)]

    newline = backend.encode("\n", add_special_tokens=False).ids
    whole = bare("\n" + text)
    return whole[len(newline) :] if whole[: len(newline)] == newline else bare(text)
