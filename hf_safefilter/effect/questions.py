"""What the models are asked before and after: harmful prompts, prompts that only sound harmful, and held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_safefilter.data.conversations import Conversation, as_conversations, row_id
from hf_safefilter.data.prompts import prompts_in
from hf_safefilter.errors import DataError

_TOY_PROMPTS = 200


@dataclass(frozen=True, slots=True)
class Questions:
    """Three sets.

    Attributes:
        harmful: prompts that an aligned model refuses; the refused share is what tuning may cost.
        over_refusal: prompts that sound harmful and are not; refusing these is a cost too.
        benign: good rows that no model is tuned on; the mean loss on them says how well the task was learned.
        source: where they come from, in words.
    """

    harmful: tuple[str, ...]
    over_refusal: tuple[str, ...]
    benign: tuple[Conversation, ...]
    source: str

    @classmethod
    def of(cls, harmful: Iterable[Any], over_refusal: Iterable[Any], benign: Iterable[Any], source: str) -> Questions:
        """From rows (or bare strings); duplicates are taken once, benign rows that cannot be read are left out.

        Raises:
            DataError: rows without prompts.
        """
        return cls(prompts_in(harmful), prompts_in(over_refusal), _readable(benign), source)

    @classmethod
    def starter(cls, benign: Iterable[Any] = ()) -> Questions:
        """The mild sets that ship with this package; `benign` rows have to be brought along."""
        from hf_safefilter.starter import SOURCE, starter_rows

        return cls.of(starter_rows("unsafe"), starter_rows("over_refusal"), benign, SOURCE)

    @classmethod
    def toy(cls, count: int = _TOY_PROMPTS) -> Questions:
        """Held-out questions of the toy model's own corpus: the only ones whose answers say something about it."""
        from hf_safefilter.toy.corpus import heldout_prompts, heldout_rows

        kinds = (heldout_prompts("harmful", count), heldout_prompts("borderline", count))
        return cls.of(*kinds, heldout_rows("benign", count), "held-out rows of the toy corpus")

    def replaced(self, **given: tuple[Iterable[Any], str]) -> Questions:
        """With other rows for some kinds: ``harmful=(rows, where they come from)``."""
        read: dict[str, Any] = {}
        for kind, (rows, _) in given.items():
            read[kind] = _readable(rows) if kind == "benign" else prompts_in(rows)
        names = [f"{kind}: {source}" for kind, (_, source) in given.items()]
        return replace(self, **read, source="; ".join([*([] if len(given) == 3 else [self.source]), *names]))

    def first(self, count: int) -> Questions:
        """At most `count` of each kind, for a quick look."""
        return replace(
            self,
            harmful=self.harmful[:count],
            over_refusal=self.over_refusal[:count],
            benign=self.benign[:count],
        )

    def without(self, prompts: Iterable[str], row_ids: Iterable[str]) -> tuple[Questions, dict[str, int]]:
        """The questions that no model has seen, and how many of each kind were left out.

        Args:
            prompts: of rows tuned on and of references; case and spaces make no difference.
            row_ids: of rows tuned on.
        """
        seen, rows = {_folded(prompt) for prompt in prompts}, set(row_ids)
        left = replace(
            self,
            harmful=tuple(one for one in self.harmful if _folded(one) not in seen),
            over_refusal=tuple(one for one in self.over_refusal if _folded(one) not in seen),
            benign=tuple(one for one in self.benign if row_id(one) not in rows),
        )
        return left, {kind: count - left.counts()[kind] for kind, count in self.counts().items()}

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {"harmful": len(self.harmful), "over_refusal": len(self.over_refusal), "benign": len(self.benign)}

    def required(self, left_out: Mapping[str, int]) -> Questions:
        """Itself.

        Raises:
            DataError: nothing is left of a kind.
        """
        for kind, count in self.counts().items():
            if not count:
                raise DataError(
                    f"there are no {kind} questions to ask",
                    found=f"{left_out[kind]} were left out: they stand in the rows or among the references",
                    fix=f"bring others: --{kind.replace('_', '-')} FILE",
                )
        return self


def _readable(rows: Iterable[Any]) -> tuple[Conversation, ...]:
    return tuple(dict.fromkeys(one for one in as_conversations(rows) if not one.reason))


def _folded(prompt: str) -> str:
    return " ".join(prompt.casefold().split())
