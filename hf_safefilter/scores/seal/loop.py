"""The run itself: step by step through the plan, with checkpoints on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hf_safefilter.errors import ModelError
from hf_safefilter.scores.seal.bilevel import Bilevel
from hf_safefilter.scores.seal.checkpoint import Checkpoints, Standing
from hf_safefilter.scores.seal.curves import Curves
from hf_safefilter.scores.seal.job import Job
from hf_safefilter.scores.seal.models import learners
from hf_safefilter.scores.seal.schedule import Plan
from hf_safefilter.scores.seal.selector import NAN_LOSS
from hf_safefilter.scores.seal.training_processes import Processes
from hf_safefilter.scores.seal.weights import RowWeights

_WIDE = 512


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run learned.

    Attributes:
        logits: row id -> logit.
        excluded: row id -> `NAN_LOSS`, for rows without a finite loss.
        safe_without_loss: safe rows without one.
        epochs: lines of `Curves`.
    """

    logits: dict[str, float]
    excluded: dict[str, str]
    safe_without_loss: int
    epochs: list[dict[str, Any]]


def learn(job: Job, kept: Checkpoints, processes: Processes) -> Learned:
    """Run the plan to its end, from the newest checkpoint on if there is one.

    Raises:
        ModelError: memory ran out, or training diverged.
    """
    from datasets.utils import tqdm

    options, safe, rows = job.options, job.safe.examples, job.rows.examples
    plan = Plan(len(rows), len(safe), options.batch_size, options.epochs, options.seed)
    with _surroundings(job.device, job.key), _memory(options.micro_batch):
        model, *auxiliary = learners(job.key, job.device, options, job.lora, job.compute, processes)
        weights = RowWeights(len(rows), options.activation, options.selector_learning_rate, options.selector_optimiser)
        both = Bilevel(model, weights, processes, next(iter(auxiliary), None), job.device)
        trusted = torch.ones(len(safe), dtype=torch.bool)
        curves, start = Curves(options), 0
        standing = _standing(kept, processes)
        if standing is not None:
            start, trusted = standing.step, standing.tensors.pop("trusted")
            both.restore(standing.tensors)
            curves = Curves(options, standing.facts)
        bar = tqdm(
            range(start, plan.steps), initial=start, total=plan.steps, desc="SEAL", disable=not processes.is_first
        )
        for step in bar:
            # each step has its own seed, so that dropout goes on as if nothing had happened
            torch.manual_seed((options.seed << 32) + step * processes.count + processes.index + 1)
            places = torch.from_numpy(plan.rows_at(step))
            places = places[weights.active[places]]
            beside = torch.from_numpy(plan.safe_at(step))
            beside = beside[trusted[beside]]
            if len(places) or len(beside):
                u = options.upper_weight_at(plan.epoch_of(step))
                seen = both.step(u, [safe[at] for at in beside], [rows[at] for at in places], places)
                trusted[beside[~seen.safe.isfinite()]] = False
                curves.add(seen)
            ends_epoch = (step + 1) % plan.steps_per_epoch == 0
            if ends_epoch:
                curves.close(plan.epoch_of(step), weights.all()[weights.active].detach().numpy())
            if processes.is_first and (ends_epoch or kept.due()):
                kept.save(step + 1, both.state() | {"trusted": trusted}, curves.state())
    return _learned(job, weights, trusted, curves)


def _learned(job: Job, weights: RowWeights, trusted: torch.Tensor, curves: Curves) -> Learned:
    found = list(zip(job.rows.ids, weights.logits.tolist(), weights.active.tolist(), strict=True))
    logits = {one: logit for one, logit, active in found if active}
    excluded = {one: NAN_LOSS for one, _, active in found if not active}
    if not logits:
        raise ModelError("no row has a finite loss", fix="compute in float32, or lower the learning rate")
    return Learned(logits, excluded, int((~trusted).sum()), curves.epochs)


def _standing(kept: Checkpoints, processes: Processes) -> Standing | None:
    """The newest checkpoint, the same in every process."""
    found = kept.latest()
    step = 0 if found is None else found.step
    steps = int(processes.total(torch.tensor([step], device=processes.device)))
    if not processes.agree(steps == processes.count * step):
        raise ModelError(
            "the processes of this run see different checkpoints", fix="put the folder where all of them can read it"
        )
    return found


@contextmanager
def _surroundings(device: torch.device, key: Any) -> Iterator[None]:
    """The caller's random state comes back afterwards; small models compute with one thread, which is faster.

    The number of threads follows from the model alone: another one would round differently after a restart.
    """
    from hf_safefilter.model.load import model_config
    from hf_safefilter.model.threads import threads

    small = device.type == "cpu" and model_config(key).get_text_config().hidden_size < _WIDE
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        threads(1 if small else torch.get_num_threads()),
    ):
        yield


@contextmanager
def _memory(micro_batch: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ModelError(
            "memory ran out; checkpoints are kept",
            found=f"micro_batch={micro_batch}",
            fix="lower micro_batch or max_length, train adapters (lora), or use dtype='bfloat16'; then run it again",
        ) from error
