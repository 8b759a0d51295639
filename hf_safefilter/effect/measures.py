"""Measurements of a model: counts of refusals, answers and degenerate replies, refusal margins, and benign loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_safefilter.locate.refusals import Judge, RefusalMatcher, verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_safefilter.model.tokens import Tokens

_LOSS_BATCH = 32


@dataclass(frozen=True, slots=True)
class Replies:
    """Numbers of replies to one set of prompts, by verdict."""

    refused: int
    answered: int
    degenerate: int

    @property
    def asked(self) -> int:
        """Number of prompts asked."""
        return self.refused + self.answered + self.degenerate

    @property
    def refusal(self) -> float:
        """Share of prompts refused."""
        return self.refused / self.asked

    @property
    def answer(self) -> float:
        """Share of prompts answered; for harmful prompts, the success rate of an attack."""
        return self.answered / self.asked

    @property
    def stammer(self) -> float:
        """Share of degenerate replies: empty, repetitive or not text."""
        return self.degenerate / self.asked


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measurements of one model.

    Attributes:
        harmful: Replies to harmful prompts.
        over_refusal: Replies to prompts that only sound harmful.
        benign_loss: Mean negative log-likelihood of a response token of the held-out rows, in nats.
        margins: For each harmful prompt, the log-probability margin of refusing over complying, in nats (see
            `margin.refusal_margins`).
    """

    harmful: Replies
    over_refusal: Replies
    benign_loss: float
    margins: tuple[float, ...]

    @property
    def margin(self) -> float:
        """Mean of the margins."""
        return sum(self.margins) / len(self.margins)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Measurements:
        """The measurements from the values of `to_json`."""
        harmful, over_refusal = (
            Replies(**{name: int(count) for name, count in body[kind].items()}) for kind in ("harmful", "over_refusal")
        )
        return cls(harmful, over_refusal, float(body["benign_loss"]), tuple(map(float, body["margins"])))


def replies_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    judge: RefusalMatcher | Judge,
    *,
    max_new_tokens: int,
    chat_template: str | None = None,
) -> Replies:
    """Generate greedy replies to every prompt, and count the verdicts."""
    from hf_safefilter.model.generate import replies

    texts = replies(model, tokenizer, prompts, max_new_tokens=max_new_tokens, chat_template=chat_template)
    counts = Counter(verdicts(judge, prompts, texts))
    return Replies(counts["refusal"], counts["answer"], counts["degenerate"])


def mean_loss(model: PreTrainedModel, rows: Sequence[Tokens]) -> float:
    """Mean negative log-likelihood, in nats, of the tokens of all answers; NaN without rows.

    Args:
        model: Causal language model; its training mode is restored afterwards.
        rows: Readable rows.
    """
    import torch

    from hf_safefilter.model.generate import evaluating, fit_threads

    total, count = 0.0, 0
    by_length = sorted(rows, key=lambda row: len(row.ids))
    with evaluating(model), fit_threads(model), torch.inference_mode():
        for start in range(0, len(by_length), _LOSS_BATCH):
            batch = by_length[start : start + _LOSS_BATCH]
            ids = torch.zeros((len(batch), max(len(row.ids) for row in batch)), dtype=torch.long)
            mask, learned = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
            for index, row in enumerate(batch):
                ids[index, : len(row.ids)] = torch.from_numpy(row.ids.astype("int64"))
                mask[index, : len(row.ids)] = 1
                learned[index, : len(row.ids)] = torch.from_numpy(row.labelled())
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), ids[:, 1:].to(model.device), reduction="none"
            )
            total += losses[learned[:, 1:].to(model.device)].double().sum().item()
            count += int(learned.sum())
    return total / count if count else float("nan")
