"""Tuning of one model on one arm by TRL's SFTTrainer: equal steps and batches for every arm, all randomness seeded."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from hf_safefilter.checks import require_choice, require_share, require_whole
from hf_safefilter.decide.mask_tokens import IGNORED
from hf_safefilter.errors import MissingError, ModelError, OptionError
from hf_safefilter.model.quantised import require_gradient
from hf_safefilter.storage.scratch import scratch_folder

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from datasets.utils import tqdm
    from torch import nn
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl import SFTConfig  # type: ignore[attr-defined]  # trl loads its names on demand

    from hf_safefilter.model.tokens import Tokens

logger = logging.getLogger(__name__)

_BYTES_FULL = 16  # of a float32 parameter, its gradient and Adam's two moments


@dataclass(frozen=True, slots=True)
class Tuning:
    """How every arm is tuned.

    Attributes:
        steps: Number of optimizer steps.
        batch: Number of rows in a step.
        learning_rate: Learning rate of the first step, which decreases linearly to zero; None takes 2e-4 for LoRA and
            2e-5 for full tuning.
        method: "lora" for adapters, "full" for all parameters.
        rank: Rank of LoRA.
        targets: Modules that LoRA adapts; "all-linear" is every linear layer except the head.
        micro_batch: Number of rows processed at once, a divisor of `batch`; None processes the whole batch.
        max_length: Largest number of tokens of a row; the middle of longer responses is cut. None sets no limit.
        weight_decay: Weight decay of AdamW.
    """

    steps: int = 200
    batch: int = 16
    learning_rate: float | None = None
    method: Literal["lora", "full"] = "lora"
    rank: int = 16
    targets: tuple[str, ...] = ("all-linear",)
    micro_batch: int | None = None
    max_length: int | None = 1024
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        require_choice("method", self.method, ("lora", "full"))
        for name in ("steps", "batch", "rank"):
            require_whole(name, getattr(self, name), least=1)
            set_field(self, name, int(getattr(self, name)))
        if self.learning_rate is None:
            set_field(self, "learning_rate", 2e-4 if self.method == "lora" else 2e-5)
        require_share("learning_rate", self.learning_rate, example=2e-4)
        if self.micro_batch is not None:
            require_whole("micro_batch", self.micro_batch, least=1)
            if self.batch % self.micro_batch:
                raise OptionError(
                    f"`micro_batch={self.micro_batch}` does not divide `batch={self.batch}`",
                    fix="use a divisor of the batch",
                )
            set_field(self, "micro_batch", int(self.micro_batch))
        set_field(self, "targets", tuple(self.targets))


def require_trainer() -> None:
    """Raise unless the packages that tune are installed.

    Raises:
        MissingError: The extra `train` is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("accelerate", "peft", "trl") if find_spec(name) is None]
    if missing:
        raise MissingError(
            f"tuning needs {', '.join(missing)}: not installed", fix="pip install 'hf_safefilter[train]'"
        )


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Tokens],
    order: np.ndarray,
    options: Tuning,
    *,
    seed: int,
    frozen: tuple[int, int] | None = None,
    title: str = "Tune",
) -> tuple[PreTrainedModel, list[float]]:
    """Tune `model`, in place, on ``rows[order]``; only answers and the tokens that end them are learned.

    Args:
        model: Whole model, which nothing else uses.
        tokenizer: Tokenizer of the model; it is not changed.
        rows: Readable rows.
        order: ``steps * batch`` indices of `rows`, in training order.
        options: Options, the same for all arms.
        seed: Seed of the adapters and of dropout.
        frozen: First and last block whose weights must not change; None freezes nothing.
        title: Title of the progress bar.

    Returns:
        The model (wrapped, with LoRA) and the loss of each step.

    Raises:
        OptionError: LoRA targets that the model does not have.
        ModelError: The loss became NaN or infinite, or there is too little memory.
    """
    from datasets.utils import tqdm
    from transformers import PrinterCallback
    from trl import SFTTrainer  # type: ignore[attr-defined]  # trl loads its names on demand

    from hf_safefilter.model.generate import fit_threads

    require_memory(model, options)
    losses: list[float] = []
    with _seeded(seed), fit_threads(model), scratch_folder() as scratch, _memory_errors(options):
        model, checks = _trainable(model, options, frozen)
        bar = tqdm(total=options.steps, desc=title, unit=" steps", leave=False)
        trainer = SFTTrainer(
            model,
            args=_arguments(str(scratch), options, model.device, seed),
            train_dataset=_dataset(rows, order),
            processing_class=copy.deepcopy(tokenizer),
            callbacks=[_loss_recorder(losses, bar), *checks],
        )
        trainer.remove_callback(PrinterCallback)
        with bar:
            trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model), losses


def _dataset(rows: Sequence[Tokens], order: np.ndarray) -> Dataset:
    from datasets import Dataset

    used = np.unique(order)
    dataset = Dataset.from_dict(
        {
            "input_ids": [rows[row].ids.tolist() for row in used],
            "labels": [np.where(rows[row].labelled(), rows[row].ids, IGNORED).tolist() for row in used],
        }
    )
    return dataset.select(np.searchsorted(used, order))


def _trainable(
    model: PreTrainedModel, options: Tuning, frozen: tuple[int, int] | None
) -> tuple[PreTrainedModel, list[TrainerCallback]]:
    """The model with its trainable parameters set, and callbacks which check that frozen blocks do not change."""
    if options.method == "full":
        require_gradient(model, model.parameters(), 'use `method="lora"`')
        model.requires_grad_(True)
        if frozen is None:
            return model, []
        from hf_safefilter.freeze import FrozenBlocks, freeze_safety_blocks

        return model, [FrozenBlocks(freeze_safety_blocks(model, *frozen))]
    from peft import LoraConfig, get_peft_model

    targets = list(options.targets) if options.targets != ("all-linear",) else "all-linear"
    config = LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    if frozen is not None:
        from hf_safefilter.freeze import lora_without

        config = lora_without(model, config, *frozen)
    try:
        return cast("PreTrainedModel", get_peft_model(model, config)), []  # it forwards all calls to the model inside
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)})
        raise OptionError(
            f"LoRA cannot adapt {', '.join(options.targets)} in this model",
            found=f"its linear layers: {', '.join(linear)}",
            fix="name some of these, or all-linear",
        ) from error


def _is_linear(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")


def _arguments(scratch: str, options: Tuning, device: torch.device, seed: int) -> SFTConfig:
    from trl import SFTConfig  # type: ignore[attr-defined]  # trl loads its names on demand

    micro = options.micro_batch or options.batch
    arguments = SFTConfig(
        output_dir=scratch,
        max_steps=options.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=options.batch // micro,
        train_sampling_strategy="sequential",  # the rows are in training order already
        learning_rate=cast(float, options.learning_rate),  # set by Tuning where the caller left it out
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=options.weight_decay,
        max_length=None,  # the rows are cut already
        dataset_kwargs={"skip_prepare_dataset": True},
        activation_checkpointing=device.type == "cuda",
        bf16=device.type == "cuda",
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
    )
    # On several GPUs transformers would process this many rows on each of them: a larger batch than the option says.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _loss_recorder(losses: list[float], bar: tqdm) -> TrainerCallback:
    """A callback that appends the loss of every step to `losses`, and raises if one is not finite."""
    from transformers import TrainerCallback

    class LossRecorder(TrainerCallback):
        """Records losses."""

        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            logs: Mapping[str, Any] | None = None,
            **kwargs: Any,
        ) -> None:
            """Called after every step."""
            if not logs or "loss" not in logs:
                return
            losses.append(float(logs["loss"]))
            bar.update()
            if not np.isfinite(losses[-1]):  # every later step would give NaN weights
                raise ModelError(
                    f"the loss became {losses[-1]} at step {state.global_step}",
                    fix='use a lower `learning_rate=...`, or `dtype="float32"`',
                )

    return LossRecorder()


def require_memory(model: PreTrainedModel, options: Tuning) -> None:
    """Raise if full tuning does not fit into memory, before the operating system kills the process.

    Raises:
        ModelError: Parameters, gradients and the state of the optimizer need more memory than is available.
    """
    if options.method != "full":
        return
    needed = _BYTES_FULL * sum(tensor.numel() for tensor in model.parameters())
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    available = _free_bytes(model.device) + held
    if needed > available:
        raise ModelError(
            f"tuning all parameters needs {needed / 2**30:.1f} GiB of memory",
            found=f"{available / 2**30:.1f} GiB on {model.device}",
            fix="use LoRA in place of full tuning",
        )


def _free_bytes(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil  # type: ignore[import-untyped]  # installed with accelerate

    return float(psutil.virtual_memory().available)


@contextmanager
def _memory_errors(options: Tuning) -> Iterator[None]:
    """Inside the block, running out of memory raises a `ModelError` that says what to do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_little_memory(options) from error
    except RuntimeError as error:
        # the messages of torch's allocator for the CPU
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            raise _too_little_memory(options) from error
        raise


def _too_little_memory(options: Tuning) -> ModelError:
    rows = options.micro_batch or options.batch
    fixes = [f"`micro_batch={rows // 2}`"] if rows > 1 else []
    fixes += ["a smaller `max_length=...`"] + (["LoRA"] if options.method == "full" else [])
    return ModelError(f"there is too little memory to tune on {rows} rows at once", fix=f"use {' or '.join(fixes)}")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside the block, all generators that training draws from are seeded; afterwards their states are restored."""
    import torch
    from transformers import set_seed

    before = random.getstate(), np.random.get_state()  # noqa: NPY002  (the callers' generator must be restored)
    with torch.random.fork_rng():
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
