"""The questions asked before and after tuning: harmful prompts, prompts that only sound harmful, held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_safefilter.data.conversations import Conversation, as_conversations
from hf_safefilter.data.prompts import prompts_in
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.errors import DataError

_TOY_PROMPTS = 200


@dataclass(frozen=True, slots=True)
class Questions:
    """Three sets of questions for a study.

    Attributes:
        harmful: Prompts that an aligned model refuses; tuning may lower the refused share.
        over_refusal: Prompts that only sound harmful; refusing them is a fault.
        benign: Benign rows that no model is tuned on; the mean loss on them shows how well the task was learned.
        source: Where the questions come from, in words.
    """

    harmful: tuple[str, ...]
    over_refusal: tuple[str, ...]
    benign: tuple[Conversation, ...]
    source: str

    @classmethod
    def of(cls, harmful: Iterable[Any], over_refusal: Iterable[Any], benign: Iterable[Any], source: str) -> Questions:
        """Questions from rows or strings, without duplicates and without benign rows that cannot be read.

        Raises:
            DataError: Rows without prompts.
        """
        return cls(prompts_in(harmful), prompts_in(over_refusal), _readable(benign), source)

    @classmethod
    def starter(cls, benign: Iterable[Any] = ()) -> Questions:
        """The mild sets of prompts that ship with this package; benign rows are the caller's own."""
        from hf_safefilter.starter import SOURCE, starter_rows

        return cls.of(starter_rows("unsafe"), starter_rows("over_refusal"), benign, SOURCE)

    @classmethod
    def toy(cls, count: int = _TOY_PROMPTS) -> Questions:
        """Held-out questions of the toy corpus, the only ones that the toy model was trained to answer."""
        from hf_safefilter.toy.corpus import heldout_prompts, heldout_rows

        harmful, over_refusal = heldout_prompts("harmful", count), heldout_prompts("borderline", count)
        return cls.of(harmful, over_refusal, heldout_rows("benign", count), "held-out rows of the toy corpus")

    def replaced(self, **kinds: tuple[Iterable[Any], str]) -> Questions:
        """These questions with other rows for some kinds, e.g. ``harmful=(rows, "where they come from")``."""
        changes: dict[str, Any] = {}
        for kind, (rows, _) in kinds.items():
            changes[kind] = _readable(rows) if kind == "benign" else prompts_in(rows)
        sources = [f"{kind}: {source}" for kind, (_, source) in kinds.items()]
        return replace(self, **changes, source="; ".join([*([] if len(kinds) == 3 else [self.source]), *sources]))

    def first(self, count: int) -> Questions:
        """The first `count` questions of each kind at most."""
        return replace(
            self,
            harmful=self.harmful[:count],
            over_refusal=self.over_refusal[:count],
            benign=self.benign[:count],
        )

    def without(self, prompts: Iterable[str], row_ids: Iterable[str]) -> tuple[Questions, dict[str, int]]:
        """The questions that no model has seen, and how many of each kind are left out.

        Args:
            prompts: Prompts of the rows tuned on and of the references; case and spaces make no difference.
            row_ids: Row ids of the rows tuned on.
        """
        seen, seen_ids = {_folded(prompt) for prompt in prompts}, set(row_ids)
        unseen = replace(
            self,
            harmful=tuple(prompt for prompt in self.harmful if _folded(prompt) not in seen),
            over_refusal=tuple(prompt for prompt in self.over_refusal if _folded(prompt) not in seen),
            benign=tuple(row for row in self.benign if row_id(row) not in seen_ids),
        )
        return unseen, {kind: count - unseen.counts()[kind] for kind, count in self.counts().items()}

    def counts(self) -> dict[str, int]:
        """Number of questions of each kind."""
        return {"harmful": len(self.harmful), "over_refusal": len(self.over_refusal), "benign": len(self.benign)}

    def required(self, left_out: Mapping[str, int]) -> Questions:
        """These questions, if there are some of every kind.

        Args:
            left_out: How many of each kind `without` has left out.

        Raises:
            DataError: No questions of a kind.
        """
        for kind, count in self.counts().items():
            if not count:
                raise DataError(
                    f"there are no {kind} questions to ask",
                    found=f"{left_out[kind]} were left out because they occur in the rows or in the references",
                    fix=f"give other questions: `{kind}=...`",
                )
        return self


def _readable(rows: Iterable[Any]) -> tuple[Conversation, ...]:
    return tuple(dict.fromkeys(row for row in as_conversations(rows) if not row.reason))


def _folded(prompt: str) -> str:
    return " ".join(prompt.casefold().split())
