"""The prompts that a search asks: normal ones, malicious ones, and ones that only sound harmful."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.starter import starter_rows

KINDS = ("normal", "malicious", "over_refusal")
"""Normal everyday prompts; harmful requests; harmless prompts that sound harmful, which aligned models over-refuse."""

ASKED = {"gap": ("normal", "malicious"), "scaling": ("over_refusal",), "bounds": KINDS}
"""Method -> kinds of prompts that it asks."""

_STARTER = {"normal": "normal", "malicious": "unsafe", "over_refusal": "over_refusal"}

Given = Sequence[str] | Mapping[str, Sequence[str]] | None


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of one kind.

    Attributes:
        kind: one of `KINDS`.
        texts: each once.
        source: "given", or "starter" for the set that ships with this package.
    """

    kind: str
    texts: tuple[str, ...]
    source: str

    def require(self, least: int) -> Prompts:
        """These prompts; raises where there are fewer than `least`."""
        if len(self.texts) < least:
            raise DataError(
                f"{len(self.texts)} {self.kind} prompts are too few", fix=f"give {least} or more, better 100"
            )
        return self

    def record(self) -> dict[str, Any]:
        """What a report may show: never the texts."""
        digest = hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()
        return {"count": len(self.texts), "digest": f"sha256:{digest}", "source": self.source}


def prompts_of(given: Given, kind: str, alone: str) -> Prompts:
    """The prompts of `kind` among those given; where that kind was not given, the starter set's.

    Args:
        given: texts by kind; or a list of texts, which then are of the kind `alone`; or None.
        kind: the one wanted.
        alone: what a plain list is taken for.

    Raises:
        OptionError: kinds that are not known.
        DataError: what is given is no text, or nothing.
    """
    if isinstance(given, str):
        raise OptionError("prompts is one text", fix="pass a list of texts, or a mapping of kinds to lists")
    by_kind = given if isinstance(given, Mapping) else {} if given is None else {alone: given}
    unknown = [name for name in by_kind if name not in KINDS]
    if unknown:
        raise OptionError(f"prompts of the kind {unknown[0]!r} are not known", fix=f"use {', '.join(KINDS)}")
    if kind not in by_kind:
        return Prompts(kind, tuple(row["prompt"] for row in starter_rows(_STARTER[kind])), "starter")
    texts = list(by_kind[kind])
    wrong = next((number for number, text in enumerate(texts) if not isinstance(text, str) or not text.strip()), None)
    if wrong is not None:
        raise DataError(f"{kind} prompt {wrong} is empty or no text", fix="remove it")
    if not texts:
        raise DataError(f"no {kind} prompts were given", fix="leave them out to use the starter set's")
    return Prompts(kind, tuple(dict.fromkeys(texts)), "given")
