"""What a model computes on and in: device, number format and attention, checked before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from hf_safefilter.checks import require_choice
from hf_safefilter.errors import MissingError, ModelError, OptionError
from hf_safefilter.model.reading_options import ATTENTIONS

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def pick_device(device: str | None, rank: int | None) -> torch.device:
    """The device to compute on: the requested one, else CUDA, else Apple's, else the CPU.

    Args:
        device: None, "cpu", "mps", "cuda" or "cuda:1".
        rank: Number of the worker process (`with_rank=True`); worker r gets GPU r modulo the number of GPUs.

    Raises:
        OptionError: The device is not known, or not available on this machine.
        ModelError: The process was forked after CUDA had been used.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"`device={device!r}` is not known", fix='use "cpu", "cuda", "cuda:1" or "mps"') from error
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError('`device="mps"` is not available here', fix='use `device="cpu"`, or leave it out')
    if chosen.type != "cuda":
        return chosen
    if torch.cuda._is_in_bad_fork():
        raise ModelError(
            "this worker was forked after CUDA had been used, which CUDA does not support",
            fix='call multiprocess.set_start_method("spawn", force=True) before map(num_proc=...)',
        )
    count = torch.cuda.device_count()
    if (chosen.index or 0) >= count:
        raise OptionError(f"`device={device!r}` is not available here", found=f"{count} GPUs", fix='use `device="cpu"`')
    return chosen if chosen.index is not None else torch.device("cuda", (rank or 0) % count)


def spare_gpus(device: str | None, rank: int | None) -> tuple[torch.device, ...]:
    """GPUs beside the one of `pick_device` that a model may be spread over: all others, if none was asked for by name.

    Of several processes each has a GPU of its own. CUDA_VISIBLE_DEVICES keeps GPUs out.
    """
    import torch

    first = pick_device(device, rank)
    if device not in (None, "cuda") or rank is not None or first.type != "cuda":
        return ()
    return tuple(torch.device("cuda", at) for at in range(torch.cuda.device_count()) if at != first.index)


def pick_dtype(dtype: str, device: torch.device, checkpoint: torch.dtype | None = None) -> str:
    """The number format to compute in: "auto" is float32, or on CUDA the checkpoint's own 16-bit format.

    Raises:
        OptionError: `dtype` is not known.
    """
    if dtype == "auto":
        stored = str(checkpoint).removeprefix("torch.")
        return stored if device.type == "cuda" and stored in DTYPES else "float32"
    require_choice("dtype", dtype, ("auto", *DTYPES))
    return dtype


def pick_attn(attn: str, dtype: str, device: torch.device) -> None:
    """Check that an implementation of attention is known, installed and suited to the device.

    transformers would download a missing one from the Hub where possible, and run code that the user did not choose.

    Raises:
        OptionError: It is not known, not installed, or not for this device and number format.
    """
    from transformers.utils import import_utils

    require_choice("attn", attn, ATTENTIONS)
    is_installed = {
        "flash_attention_2": import_utils.is_flash_attn_2_available,
        "flash_attention_3": import_utils.is_flash_attn_3_available,
        "flex_attention": import_utils.is_torch_flex_attn_available,
    }
    if attn.startswith("flash") and (device.type != "cuda" or dtype == "float32"):
        raise OptionError(
            f"`attn={attn!r}` is for GPUs, in 16 bits", found=f"{dtype} on {device.type}", fix='use `attn="auto"`'
        )
    if attn in is_installed and not is_installed[attn]():
        raise OptionError(f"`attn={attn!r}` is not installed here", fix='install it, or use `attn="auto"`')


def pick_backend(backend: str) -> None:
    """Check that what is to compute the states is installed.

    Raises:
        MissingError: It is not.
    """
    if backend == "vllm" and find_spec("vllm") is None:
        raise MissingError(
            '`backend="vllm"` needs vLLM: not installed',
            fix="install vllm beside hf_safefilter, or leave the option out",
        )
