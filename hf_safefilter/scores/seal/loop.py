"""The run itself: all steps of the schedule, with checkpoints along the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_safefilter.errors import ModelError
from hf_safefilter.scores.seal.bilevel import Bilevel
from hf_safefilter.scores.seal.checkpoint import Checkpoint, Checkpoints
from hf_safefilter.scores.seal.curves import Curves
from hf_safefilter.scores.seal.job import Job
from hf_safefilter.scores.seal.models import learners
from hf_safefilter.scores.seal.schedule import Schedule
from hf_safefilter.scores.seal.selector import NAN_LOSS
from hf_safefilter.scores.seal.training_processes import Processes
from hf_safefilter.scores.seal.weights import RowWeights

if TYPE_CHECKING:
    from hf_safefilter.model.source import ModelKey

_WIDE = 512
"""Hidden size from which on several threads compute faster than one."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run learned.

    Attributes:
        logits: Row id -> logit.
        excluded: Row id -> `NAN_LOSS`, for rows without a finite loss.
        safe_without_loss: Number of safe rows without a finite loss.
        epochs: The lines of `Curves`.
    """

    logits: dict[str, float]
    excluded: dict[str, str]
    safe_without_loss: int
    epochs: list[dict[str, Any]]


def learn(job: Job, checkpoints: Checkpoints, processes: Processes) -> Learned:
    """Run all steps, from the newest checkpoint on if there is one.

    Raises:
        ModelError: Memory ran out, or training diverged.
    """
    from datasets.utils import tqdm

    options, safe, rows = job.options, job.safe.examples, job.rows.examples
    schedule = Schedule(len(rows), len(safe), options.batch_size, options.epochs, options.seed)
    with _surroundings(job.device, job.key), _memory(options.micro_batch):
        model, *auxiliary = learners(job.key, job.device, options, job.lora, job.compute, processes)
        weights = RowWeights(len(rows), options.activation, options.selector_rate, options.selector_optimiser)
        bilevel = Bilevel(model, weights, processes, next(iter(auxiliary), None), job.device)
        safe_active = torch.ones(len(safe), dtype=torch.bool)
        curves, start = Curves(options), 0
        checkpoint = _latest(checkpoints, processes)
        if checkpoint is not None:
            start, safe_active = checkpoint.step, checkpoint.tensors.pop("trusted")
            bilevel.restore(checkpoint.tensors)
            curves = Curves(options, checkpoint.facts)
        steps = tqdm(
            range(start, schedule.steps),
            initial=start,
            total=schedule.steps,
            desc="SEAL",
            disable=not processes.is_first,
        )
        for step in steps:
            # each step has its own seed, so that dropout is the same in a run that was continued
            torch.manual_seed((options.seed << 32) + step * processes.count + processes.index + 1)
            indices = torch.from_numpy(schedule.rows_at(step))
            indices = indices[weights.active[indices]]
            safe_indices = torch.from_numpy(schedule.safe_at(step))
            safe_indices = safe_indices[safe_active[safe_indices]]
            if len(indices) or len(safe_indices):
                u = options.upper_weight_at(schedule.epoch_of(step))
                losses = bilevel.step(u, [safe[i] for i in safe_indices], [rows[i] for i in indices], indices)
                safe_active[safe_indices[~losses.safe.isfinite()]] = False
                curves.add(losses)
            ends_epoch = (step + 1) % schedule.steps_per_epoch == 0
            if ends_epoch:
                curves.close(schedule.epoch_of(step), weights.all()[weights.active].detach().numpy())
            if processes.is_first and (ends_epoch or checkpoints.due()):
                checkpoints.save(step + 1, bilevel.state() | {"trusted": safe_active}, curves.state())
    return _learned(job, weights, safe_active, curves)


def _learned(job: Job, weights: RowWeights, safe_active: torch.Tensor, curves: Curves) -> Learned:
    table = list(zip(job.rows.ids, weights.logits.tolist(), weights.active.tolist(), strict=True))
    logits = {row_id: logit for row_id, logit, active in table if active}
    excluded = {row_id: NAN_LOSS for row_id, _, active in table if not active}
    if not logits:
        raise ModelError(
            "no row has a finite loss", fix='compute in float32 (`dtype="float32"`), or lower the learning rate'
        )
    return Learned(logits, excluded, int((~safe_active).sum()), curves.epochs)


def _latest(checkpoints: Checkpoints, processes: Processes) -> Checkpoint | None:
    """The newest checkpoint, the same in every process."""
    checkpoint = checkpoints.latest()
    step = 0 if checkpoint is None else checkpoint.step
    steps = int(processes.total(torch.tensor([step], device=processes.device)))
    if not processes.agree(steps == processes.count * step):
        raise ModelError(
            "the processes of this run see different checkpoints",
            fix="use a checkpoint folder that all of them can read",
        )
    return checkpoint


@contextmanager
def _surroundings(device: torch.device, key: ModelKey) -> Iterator[None]:
    """Restore the caller's random state afterwards, and compute small models with one thread, which is faster.

    The number of threads depends on the model alone: another number would round differently after a restart.
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
            found=f"`micro_batch={micro_batch}`",
            fix="lower `micro_batch=...` or `max_length=...`, train LoRA adapters instead of all weights, or use "
            '`dtype="bfloat16"`; then run it again',
        ) from error
