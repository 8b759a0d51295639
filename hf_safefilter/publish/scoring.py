"""What rows were scored with, published beside them as far as a stranger needs it: no text, and nothing to believe.

Of a probe, how it was fitted, so that it can be fitted again; of ranks, the sorted scores, which are held against
scores of the stranger's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.errors.redaction import everywhere, shown
from hf_safefilter.publish.provenance import portable
from hf_safefilter.scores.probe import Probe
from hf_safefilter.scores.ranks import Ranks
from hf_safefilter.storage import artifacts
from hf_safefilter.storage.contained import fault_of
from hf_safefilter.storage.fitted import Fitted

SCORING = "scoring"
OURS = re.compile(rf"{SCORING}/(probe|ranks)-[0-9a-f]{{16}}\.(json|safetensors)")
"""The files that are written there, and no others."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RANKS = "ranks.safetensors"
_FACTS = 2**20  # bytes of a description at most
_HEADER = 2**14  # bytes of a file of numbers beside these


def write_scoring(folder: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """Write what `steps`, as recorded, score with under ``scoring``; what names a place of this machine is left out."""
    kinds: dict[str, type[Fitted]] = {"probe": Probe, "ranks": Ranks}
    for field, kind in kinds.items():
        for digest in sorted({str(step[field]) for step in steps if _DIGEST.fullmatch(str(step.get(field)))}):
            try:
                fitted = kind.of(digest)
            except MissingError:
                continue
            if not _may_be_shown(fitted.facts):
                continue
            (folder / SCORING).mkdir(exist_ok=True)
            _place(folder, field, digest).write_bytes(fitted.bytes_of(artifacts.MANIFEST))
            if kind is Ranks:
                _place(folder, field, digest, "safetensors").write_bytes(fitted.bytes_of(_RANKS))


def scoring_files(folder: Path) -> list[Path]:
    """The files of that kind in a published folder, in order."""
    files = sorted((folder / SCORING).glob("*"))
    return [path for path in files if path.is_file() and OURS.fullmatch(path.relative_to(folder).as_posix())]


def facts_of_probe(folder: Path, digest: str) -> Mapping[str, Any] | None:
    """How the probe with this digest was fitted, as a published folder says; None if it does not.

    Raises:
        IntegrityError: What it says is of another probe, or damaged.
    """
    manifest = _manifest(folder, "probe", digest)
    return None if manifest is None else manifest.facts


def take_ranks(folder: Path, digest: str, rows: int) -> bool:
    """Copy published ranks into this user's store, unless they are there: sorted finite numbers, and nothing else.

    Args:
        folder: The published folder.
        digest: Their digest in the record.
        rows: Number of rows of the source: there are no more scores.

    Returns:
        Whether the folder has them.

    Raises:
        IntegrityError: They are others than recorded, or no ranks of so many rows.
    """
    manifest = _manifest(folder, "ranks", digest)
    if manifest is None:
        return False
    file = _place(folder, "ranks", digest, "safetensors")
    columns = manifest.facts.get("columns")
    if not isinstance(columns, list) or not 1 <= len(columns) <= 64 or set(manifest.files) != {_RANKS}:
        raise _damaged(digest)
    fault = fault_of(folder, file)
    if fault is not None:
        raise IntegrityError(f"{file.name} {fault}", fix="write the folder again")
    if file.stat().st_size > 4 * rows * len(columns) + _HEADER:
        raise _damaged(digest)
    content = file.read_bytes()
    try:
        from safetensors.numpy import load

        tensors = load(content)
        fitted = [tensors[str(number)] for number in range(len(columns))]
        sound = len(tensors) == len(fitted) and all(_is_sorted(scores, rows) for scores in fitted)
    except Exception as error:  # of a library that reads what a stranger has written
        raise _damaged(digest) from error
    if not sound:
        raise _damaged(digest)
    if Ranks.make(manifest.facts, {_RANKS: content}).digest != digest:
        raise _damaged(digest)
    return True


def is_here(kind: type[Fitted], digest: str) -> bool:
    """Whether this user's store has it, and it is whole."""
    return artifacts.is_kept(digest, kind.KIND, kind.VERSION)


def _is_sorted(scores: np.ndarray, rows: int) -> bool:
    return (
        scores.ndim == 1
        and scores.dtype == np.float32
        and 0 < len(scores) <= rows
        and bool(np.isfinite(scores).all())
        and bool((np.diff(scores) >= 0).all())
    )


def _manifest(folder: Path, kind: str, digest: str) -> artifacts.Manifest | None:
    path = _place(folder, kind, digest)
    if not path.exists() and not path.is_symlink():
        return None
    fault = fault_of(folder, path)
    if fault is not None:
        raise IntegrityError(f"{path.name} {fault}", fix="write the folder again")
    try:
        if path.stat().st_size > _FACTS:
            raise _damaged(digest)
        body = json.loads(path.read_text(encoding="utf-8"))
        manifest = artifacts.Manifest(body["kind"], body["version"], dict(body["facts"]), dict(body["files"]))
        same = manifest.digest == digest and manifest.kind == kind
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise _damaged(digest) from error
    if not same:
        raise _damaged(digest)
    return manifest


def _damaged(digest: str) -> IntegrityError:
    return IntegrityError(f"what is published of {digest[:19]}... is something else", fix="write the folder again")


def _place(folder: Path, kind: str, digest: str, ending: str = "json") -> Path:
    return folder / SCORING / f"{kind}-{digest.removeprefix('sha256:')[:16]}.{ending}"


def _may_be_shown(facts: Mapping[str, Any]) -> bool:
    """Whether facts hold no path, no password and no hidden character."""
    plain = json.loads(json.dumps(facts))
    embed = plain.get("embed") or {}
    model = str(embed.get("model", ""))
    of_a_folder = str(embed.get("revision", "")).startswith("sha256:")
    named_by_path = re.search(r"\\|^~|^\w+://|^file:", model) or (of_a_folder and "/" in model)
    return everywhere(portable(plain), shown) == plain and not named_by_path
