"""The prompts of a search: normal ones, malicious ones, and over-refusal ones, which only sound harmful."""

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
"""Kinds of prompts that each method uses."""

_STARTER = {"normal": "normal", "malicious": "unsafe", "over_refusal": "over_refusal"}

PromptsInput = Sequence[str] | Mapping[str, Sequence[str]] | None
"""Texts by kind; or a list of texts of the kind that is needed; or None for the starter set."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of one kind.

    Attributes:
        kind: Kind of the prompts, one of `KINDS`.
        texts: Texts of the prompts, without duplicates.
        source: "given" for the caller's own, "starter" for the set that ships with this package.
    """

    kind: str
    texts: tuple[str, ...]
    source: str

    def require(self, least: int) -> Prompts:
        """These prompts, if there are at least `least`.

        Raises:
            DataError: There are fewer.
        """
        if len(self.texts) < least:
            raise DataError(
                f"{len(self.texts)} {self.kind} prompts are too few", fix=f"give {least} or more, better 100"
            )
        return self

    def record(self) -> dict[str, Any]:
        """Plain values for reports; the texts are never shown."""
        digest = hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()
        return {"count": len(self.texts), "digest": f"sha256:{digest}", "source": self.source}


def prompts_of_kind(prompts: PromptsInput, kind: str) -> Prompts:
    """The caller's prompts of one kind; without any, those of the starter set.

    Args:
        prompts: Texts by kind; or a list of texts, all of this kind; or None.
        kind: Kind of the prompts, one of `KINDS`.

    Raises:
        OptionError: An unknown kind, or a single text.
        DataError: A prompt that is not a text or is empty, or an empty list.
    """
    if isinstance(prompts, str):
        raise OptionError(
            "`prompts` is a single text", fix="pass a list of texts, or a mapping of kinds to lists of texts"
        )
    by_kind = prompts if isinstance(prompts, Mapping) else {} if prompts is None else {kind: prompts}
    unknown = [name for name in by_kind if name not in KINDS]
    if unknown:
        raise OptionError(
            f"prompts of the kind {unknown[0]!r} are not known", found=", ".join(KINDS), fix="use some of these kinds"
        )
    if kind not in by_kind:
        # Prompts of one kind alone in another language would be told apart by it.
        rows = [row for row in starter_rows(_STARTER[kind]) if row.get("language", "en") == "en"]
        return Prompts(kind, tuple(row["prompt"] for row in rows), "starter")
    texts = list(by_kind[kind])
    invalid = next((index for index, text in enumerate(texts) if not isinstance(text, str) or not text.strip()), None)
    if invalid is not None:
        raise DataError(f"{kind} prompt {invalid} is empty or not a text", fix="remove it")
    if not texts:
        raise DataError(f"the list of {kind} prompts is empty", fix="leave it out to use the starter set")
    return Prompts(kind, tuple(dict.fromkeys(texts)), "given")
