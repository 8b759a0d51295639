"""What a model does when asked: refusals, answers and stammering, and the loss on rows it should be good at."""

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
    """What became of the replies to one set of prompts, in numbers of replies."""

    refused: int
    answered: int
    degenerate: int

    @property
    def asked(self) -> int:
        """All of them."""
        return self.refused + self.answered + self.degenerate

    @property
    def refusal(self) -> float:
        """Share refused."""
        return self.refused / self.asked

    @property
    def answer(self) -> float:
        """Share answered: of harmful prompts, the attack's success."""
        return self.answered / self.asked

    @property
    def stammer(self) -> float:
        """Share that is neither: empty, repeated or no text."""
        return self.degenerate / self.asked


@dataclass(frozen=True, slots=True)
class Measured:
    """One model, asked everything.

    Attributes:
        harmful: replies to harmful prompts.
        over_refusal: replies to prompts that only sound harmful.
        benign_loss: mean negative log-likelihood of a response token of the held-out rows, in nats.
    """

    harmful: Replies
    over_refusal: Replies
    benign_loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Measured:
        """What `to_json` gave."""
        sides = (Replies(**{name: int(count) for name, count in body[kind].items()}) for kind in KINDS)
        return cls(*sides, float(body["benign_loss"]))


KINDS = ("harmful", "over_refusal")
"""Sets of prompts whose replies are judged."""


def replies_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    judge: RefusalMatcher | Judge,
    *,
    max_new_tokens: int,
    chat_template: str | None = None,
) -> Replies:
    """Ask every prompt, greedily, and count the verdicts."""
    from hf_safefilter.model.generate import replies

    said = replies(model, tokenizer, prompts, max_new_tokens=max_new_tokens, chat_template=chat_template)
    counts = Counter(verdicts(judge, prompts, said))
    return Replies(counts["refusal"], counts["answer"], counts["degenerate"])


def mean_loss(model: PreTrainedModel, rows: Sequence[Tokens]) -> float:
    """Mean negative log-likelihood, in nats, of the tokens from the start of each response on; NaN without rows.

    Args:
        model: a causal language model; its training mode is restored.
        rows: read with position "mean_response".
    """
    import torch

    from hf_safefilter.model.generate import evaluating, fit_threads

    total, count = 0.0, 0
    order = sorted(rows, key=lambda one: len(one.ids))
    with evaluating(model), fit_threads(model), torch.inference_mode():
        for at in range(0, len(order), _LOSS_BATCH):
            some = order[at : at + _LOSS_BATCH]
            ids = torch.zeros((len(some), max(len(one.ids) for one in some)), dtype=torch.long)
            mask, learned = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
            for row, one in enumerate(some):
                ids[row, : len(one.ids)] = torch.from_numpy(one.ids.astype("int64"))
                mask[row, : len(one.ids)] = 1
                learned[row, max(1, one.start) : len(one.ids)] = True
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), ids[:, 1:].to(model.device), reduction="none"
            )
            total += losses[learned[:, 1:].to(model.device)].double().sum().item()
            count += int(learned.sum())
    return total / count if count else float("nan")
