"""One run of a study: a fresh copy of the model, tuned on the rows of an arm, and asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.effect.arms import Arm, schedule
from hf_safefilter.effect.ledger import Ledger, Run, digest_of
from hf_safefilter.effect.material import Material, tokens_of
from hf_safefilter.effect.measures import Measured, mean_loss, replies_to
from hf_safefilter.effect.questions import Questions
from hf_safefilter.effect.tuning import Tuning, tune

if TYPE_CHECKING:
    from hf_safefilter.model.source import ModelKey

logger = logging.getLogger(__name__)

BEFORE = "before"
"""In place of an arm's name: the model as it came."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one study, and what they share; a run that is in the ledger is not made again."""

    key: ModelKey
    device: Any
    rows: Material
    tuning: Tuning
    asked: Questions
    judge: Any
    max_new_tokens: int
    chat_template: str | None
    ledger: Ledger
    inputs: Mapping[str, Any]

    def before(self) -> Run:
        """The model as it came."""
        from hf_safefilter.model import load

        digest = self._digest()
        found = self.ledger.find(BEFORE, 0, digest)
        if found is None:
            begin = time.monotonic()
            measured = self._measure(load.fresh_causal_lm(self.key, self.device))
            found = Run(BEFORE, 0, 0, 0, 0.0, (), measured, time.monotonic() - begin)
            self.ledger.write(found, digest)
        return found

    def run(self, arm: Arm, seed: int, rows: np.ndarray, freeze: tuple[int, int] | None) -> Run:
        """One arm with one seed: from the ledger, or tuned now."""
        from hf_safefilter.model import load

        blocks = freeze if arm.frozen else None
        ids = [self.rows.ids[row] for row in rows]
        digest = self._digest(arm=arm.rows, seed=seed, rows=ids, tuning=asdict(self.tuning), frozen=blocks)
        found = self.ledger.find(arm.name, seed, digest)
        if found is not None:
            logger.info("%s, seed %d: done before", arm.name, seed)
            return found
        begin = time.monotonic()
        logger.info("%s, seed %d: tuning on %d rows", arm.name, seed, len(rows))
        order = schedule(rows, self.tuning.steps * self.tuning.batch, seed)
        model, losses = tune(
            load.fresh_causal_lm(self.key, self.device),
            load.tokenizer(self.key),
            self.rows.tokens,
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

    def _measure(self, model: Any) -> Measured:
        from hf_safefilter.model import load

        tokenizer = load.tokenizer(self.key)
        asking = {"max_new_tokens": self.max_new_tokens, "chat_template": self.chat_template}
        benign = tokens_of(self.asked.benign, self.key, self.tuning.max_length, self.chat_template)
        return Measured(
            harmful=replies_to(model, tokenizer, self.asked.harmful, self.judge, **asking),
            over_refusal=replies_to(model, tokenizer, self.asked.over_refusal, self.judge, **asking),
            benign_loss=mean_loss(model, benign),
        )

    def _digest(self, **own: Any) -> str:
        shared = ("algorithm", "model", "revision", "dtype", "template", "questions", "judge", "replies", "versions")
        return digest_of({name: self.inputs[name] for name in shared} | own)
