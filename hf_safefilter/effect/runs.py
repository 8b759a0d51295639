"""The runs of a study: fresh copies of the model, each tuned on the rows of an arm and then measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.effect.arms import MASKED, Arm, schedule
from hf_safefilter.effect.ledger import Ledger, Run, digest_of
from hf_safefilter.effect.margin import refusal_margins
from hf_safefilter.effect.material import Material, tokens_of
from hf_safefilter.effect.measures import Measurements, Replies, mean_loss, replies_to
from hf_safefilter.effect.questions import Questions
from hf_safefilter.effect.tuning import Tuning, tune

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hf_safefilter.locate.refusals import Judge, RefusalMatcher
    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.model.tokens import Tokens

logger = logging.getLogger(__name__)

BEFORE = "before"
"""Name of the run of the untuned model, in place of an arm's name."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one study, and what they share; a run that is in the ledger is not repeated.

    `begun` holds the harmful questions with the beginnings of answers, from `margin.begun_answers`.
    """

    key: ModelKey
    device: torch.device
    rows: Material
    tuning: Tuning
    questions: Questions
    begun: Sequence[Sequence[Tokens]]
    judge: RefusalMatcher | Judge
    max_new_tokens: int
    chat_template: str | None
    ledger: Ledger
    inputs: Mapping[str, Any]

    def before(self) -> Run:
        """The run of the untuned model."""
        from hf_safefilter.model import load

        digest = self._digest()
        run = self.ledger.find(BEFORE, 0, digest)
        if run is None:
            begin = time.monotonic()
            measured = self._measure(load.fresh_causal_lm(self.key, self.device))
            run = Run(BEFORE, 0, 0, 0, 0.0, (), measured, time.monotonic() - begin)
            self.ledger.write(run, digest)
        return run

    def run(self, arm: Arm, seed: int, rows: np.ndarray, freeze: tuple[int, int] | None) -> Run:
        """The run of one arm with one seed, from the ledger or made now.

        Args:
            arm: The arm.
            seed: Seed of the run.
            rows: Indices of the rows of the arm.
            freeze: First and last block to freeze, if the arm is a frozen one.
        """
        from hf_safefilter.model import load

        blocks = freeze if arm.frozen else None
        learned: list[Any] = [self.rows.ids[row] for row in rows]
        if arm.rows == MASKED:
            learned = [[id_, self.rows.masked_tokens[row].masked] for id_, row in zip(learned, rows, strict=True)]
        digest = self._digest(arm=arm.rows, seed=seed, rows=learned, tuning=asdict(self.tuning), frozen=blocks)
        finished = self.ledger.find(arm.name, seed, digest)
        if finished is not None:
            logger.info("%s, seed %d: finished before", arm.name, seed)
            return finished
        begin = time.monotonic()
        logger.info("%s, seed %d: tuning on %d rows", arm.name, seed, len(rows))
        order = schedule(rows, self.tuning.steps * self.tuning.batch, seed)
        model, losses = tune(
            load.fresh_causal_lm(self.key, self.device),
            load.tokenizer(self.key),
            self.rows.masked_tokens if arm.rows == MASKED else self.rows.tokens,
            order,
            self.tuning,
            seed=seed,
            frozen=blocks,
            title=f"Tune on {arm.name}, seed {seed}",
        )
        run = Run(
            arm.name,
            seed,
            len(rows),
            len(losses),
            float(self.rows.lengths[rows].mean()),
            (losses[0], losses[-1]),
            self._measure(model),
            time.monotonic() - begin,
        )
        self.ledger.write(run, digest)
        return run

    def _measure(self, model: PreTrainedModel) -> Measurements:
        benign = tokens_of(self.questions.benign, self.key, self.tuning.max_length, self.chat_template)
        return Measurements(
            harmful=self._ask(model, self.questions.harmful),
            over_refusal=self._ask(model, self.questions.over_refusal),
            benign_loss=mean_loss(model, benign),
            margins=tuple(refusal_margins(model, self.begun).tolist()),
        )

    def _ask(self, model: PreTrainedModel, prompts: Sequence[str]) -> Replies:
        from hf_safefilter.model import load

        return replies_to(
            model, load.tokenizer(self.key), prompts, self.judge, max_new_tokens=self.max_new_tokens,
            chat_template=self.chat_template,
        )  # fmt: skip

    def _digest(self, **own: Any) -> str:
        shared = ("algorithm", "model", "revision", "dtype", "template", "questions", "judge", "replies", "openings",
                  "versions")  # fmt: skip
        return digest_of({name: self.inputs[name] for name in shared} | own)
