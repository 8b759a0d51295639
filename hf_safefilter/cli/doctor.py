"""doctor: what is installed, on which device it will run, and what is missing."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

EXAMPLE = "hf-safefilter --format json doctor"

_NEEDED = ("hf_safefilter", "datasets", "faiss-cpu", "huggingface_hub", "numpy", "pyarrow", "torch", "transformers")
_OPTIONAL = {
    "mlcroissant": "checks croissant.json",
    "peft": "LoRA tuning",
    "accelerate": "tuning",
    "trl": "the proof of effect",
    "gguf": "reading GGUF files",
    "ray": "running on a cluster",
}


def doctor(context: typer.Context) -> None:
    """Print versions, device, Hub endpoint, cache sizes and missing packages.

    The exit code is 1 if a package is missing that is not optional.
    """
    missing = [name for name in _NEEDED if _version(name) is None]
    facts: dict[str, Any] = {"python": platform.python_version()}
    facts |= {name: _version(name) or "MISSING" for name in _NEEDED}
    facts |= {name: _version(name) or f"not installed ({purpose})" for name, purpose in _OPTIONAL.items()}
    facts |= _device() | _hub() | _store()
    facts["missing"] = ", ".join(missing) or "nothing"
    hint = "pip install hf_safefilter" if missing else "hf-safefilter demo"
    context.obj.report(facts, ids=missing, hint=hint)
    if missing:
        raise typer.Exit(1)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    device, name = "cpu", platform.processor() or platform.machine()
    if not (_version("torch") or "+cpu").endswith("+cpu"):  # importing torch takes longer than all the rest
        import torch

        from hf_safefilter.model.load import pick_device

        found = pick_device(None, None)
        device = str(found)
        name = torch.cuda.get_device_name(found) if found.type == "cuda" else name
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {"device": device, "device name": name, "processors": len(usable)}


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    return {
        "endpoint": constants.ENDPOINT,
        "offline": bool(constants.HF_HUB_OFFLINE),
        "logged in": get_token() is not None,
    }


def _store() -> dict[str, Any]:
    from hf_safefilter.cache.upkeep import spaces_in_use
    from hf_safefilter.storage.artifacts import store_root

    root = store_root()
    artefacts = [path for path in root.glob("*/*") if path.is_dir() and path.parent.name != "rows"]
    size = 0
    for folder in artefacts:
        with suppress(OSError):  # another process is replacing it
            size += sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return {
        "store": _short(root),
        "artefacts kept": len(artefacts),
        "store MB": round(size / 1e6, 1),
        "row cache MB": round(sum(space.size for space in spaces_in_use()) / 1e6, 1),
    }


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
