"""Tuning one model on one arm, by TRL's SFTTrainer: as many steps and rows for every arm, nothing left to chance."""

from __future__ import annotations

import copy
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_safefilter.errors import MissingError, ModelError, OptionError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from hf_safefilter.model.tokens import Tokens

logger = logging.getLogger(__name__)

_IGNORED = -100
_BYTES_FULL = 16  # a float32 parameter, its gradient and Adam's two moments


@dataclass(frozen=True, slots=True)
class Tuning:
    """How every arm is tuned.

    Attributes:
        steps: of the optimizer, the same for all arms.
        batch: rows a step, the same for all arms.
        learning_rate: at the first step; it falls to zero along a line. None: 2e-4 for LoRA, 2e-5 for full tuning.
        method: "lora", or "full" for all parameters.
        rank: of LoRA.
        targets: modules that LoRA changes; "all-linear" is every linear layer but the head.
        micro_batch: rows at once, where a whole batch does not fit; it divides `batch`.
        max_length: longest row in tokens; the middle of longer responses is cut.
        weight_decay: of AdamW.
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
        if self.method not in ("lora", "full"):
            raise OptionError(f"method {self.method!r} is not known", fix="use 'lora' or 'full'")
        for name in ("steps", "batch", "rank"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)!r} is not 1 or more", fix=f"use e.g. {name}=16")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", 2e-4 if self.method == "lora" else 2e-5)
        if not 0 < self.learning_rate < 1:
            raise OptionError(f"learning_rate={self.learning_rate!r} makes no sense", fix="use e.g. 2e-4")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch % self.micro_batch):
            raise OptionError(
                f"micro_batch={self.micro_batch} does not divide batch={self.batch}", fix="use a divisor of the batch"
            )
        object.__setattr__(self, "targets", tuple(self.targets))


def require_trainer() -> None:
    """Raise unless what tunes is installed.

    Raises:
        MissingError: the extra is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("accelerate", "peft", "trl") if find_spec(name) is None]
    if missing:
        raise MissingError(
            f"tuning needs {', '.join(missing)}, which is not installed", fix="pip install 'hf_safefilter[train]'"
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
    """Tune `model`, in place, on ``rows[order]``; what the assistant says and its end is learned, nothing else.

    Args:
        model: the whole model, for this call alone.
        tokenizer: of the model; it is not changed.
        rows: read with position "mean_response".
        order: ``steps * batch`` places in `rows`.
        options: the same for all arms.
        seed: of the adapters and of dropout.
        frozen: first and last block whose weights must not change.
        title: of the progress bar.

    Returns:
        The model (wrapped, with LoRA) and the loss of each step.

    Raises:
        OptionError: LoRA targets that the model does not have.
        ModelError: the loss became NaN or infinite, or there is too little memory.
    """
    from datasets.utils import tqdm
    from trl import SFTTrainer

    from hf_safefilter.model.generate import fit_threads

    require_memory(model, options)
    with _seeded(seed), fit_threads(model), tempfile.TemporaryDirectory() as scratch, _explained(options):
        model, checks = _trainable(model, options, frozen)
        bar = tqdm(total=options.steps, desc=title, unit=" steps", leave=False)
        trainer = SFTTrainer(
            model,
            args=_arguments(scratch, options, model.device, seed),
            train_dataset=_dataset(rows, order),
            processing_class=copy.deepcopy(tokenizer),
            callbacks=[watch := _watch(bar), *checks],
        )
        _silence(trainer)
        with bar:
            trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model), watch.losses


def _dataset(rows: Sequence[Tokens], order: np.ndarray) -> Any:
    from datasets import Dataset

    used = np.unique(order)
    made = Dataset.from_dict(
        {
            "input_ids": [rows[row].ids.tolist() for row in used],
            # from the response on: its words, and the token that ends the turn
            "labels": [[_IGNORED] * rows[row].start + rows[row].ids[rows[row].start :].tolist() for row in used],
        }
    )
    return made.select(np.searchsorted(used, order))


def _trainable(
    model: PreTrainedModel, options: Tuning, frozen: tuple[int, int] | None
) -> tuple[PreTrainedModel, list[TrainerCallback]]:
    """The model with what trains switched on, and what checks that the frozen blocks stay as they are."""
    if options.method == "full":
        model.requires_grad_(True)
        if frozen is None:
            return model, []
        from hf_safefilter.freeze import FrozenBlocks, freeze_safety_blocks

        return model, [FrozenBlocks(freeze_safety_blocks(model, *frozen))]
    from peft import LoraConfig, get_peft_model

    targets: Any = list(options.targets) if options.targets != ("all-linear",) else "all-linear"
    config = LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    if frozen is not None:
        from hf_safefilter.freeze import lora_without

        config = lora_without(model, config, *frozen)
    try:
        return get_peft_model(model, config), []
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)})
        raise OptionError(
            f"LoRA cannot change {', '.join(options.targets)} in this model",
            found=f"its linear layers: {', '.join(linear)}",
            fix="name some of these, or all-linear",
        ) from error


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")


def _arguments(scratch: str, options: Tuning, device: torch.device, seed: int) -> Any:
    from trl import SFTConfig

    micro = options.micro_batch or options.batch
    arguments = SFTConfig(
        output_dir=scratch,
        max_steps=options.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=options.batch // micro,
        train_sampling_strategy="sequential",  # `order` has been drawn already
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=options.weight_decay,
        max_length=None,  # rows have been cut already
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
    # On several GPUs transformers would take this many rows on each of them, and so another batch than asked for.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _silence(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _watch(bar: Any) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Keeps the losses, and stops at the first that is no number: what follows would be no model any more."""

        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            """Called after every step."""
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            self.losses.append(float(loss))
            bar.update()
            if not np.isfinite(self.losses[-1]):
                raise ModelError(
                    f"the loss became {self.losses[-1]} at step {state.global_step}",
                    fix="use a lower learning rate, or float32",
                )

    return Watch()


def require_memory(model: PreTrainedModel, options: Tuning) -> None:
    """Raise where full tuning cannot fit, before the system ends the process without a word.

    Raises:
        ModelError: parameters, gradients and the optimizer's state need more memory than there is.
    """
    if options.method != "full":
        return
    need = _BYTES_FULL * sum(one.numel() for one in model.parameters())
    there = _free_bytes(model.device) + sum(one.numel() * one.element_size() for one in model.parameters())
    if need > there:
        raise ModelError(
            f"tuning all parameters needs {need / 2**30:.1f} GiB", found=f"{there / 2**30:.1f} GiB on {model.device}",
            fix="use LoRA: --tune lora",
        )  # fmt: skip


def _free_bytes(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil  # accelerate brings it

    return float(psutil.virtual_memory().available)


@contextmanager
def _explained(options: Tuning) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_little_memory(options) from error
    except RuntimeError as error:
        # what torch's allocator for the CPU says
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            raise _too_little_memory(options) from error
        raise


def _too_little_memory(options: Tuning) -> ModelError:
    rows = options.micro_batch or options.batch
    fix = f"use --micro-batch {max(1, rows // 2)}, a smaller --max-length" if rows > 1 else "use a smaller --max-length"
    return ModelError(
        f"there is too little memory to tune on {rows} rows at once",
        fix=fix + (", or LoRA: --tune lora" if options.method == "full" else ""),
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """All generators that training draws from at `seed` inside the block, and where they were after it."""
    import torch
    from transformers import set_seed

    before = random.getstate(), np.random.get_state()  # noqa: NPY002  (what others draw from has to be put back)
    with torch.random.fork_rng():
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
