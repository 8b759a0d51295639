"""What the recorded steps score with, published beside the rows: fitted numbers, and no text of any reference.

A stranger who has the references as well, or can make them again from the starter set, can then score rows anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.publish.provenance import portable
from hf_safefilter.scores.probe import Probe
from hf_safefilter.scores.ranks import Ranks
from hf_safefilter.scores.saft.subspace import SaftSubspace
from hf_safefilter.storage import artifacts
from hf_safefilter.storage.fitted import Fitted

SCORING = "scoring"
_KINDS: tuple[type[Fitted], ...] = (Probe, Ranks, SaftSubspace)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LENGTH = 16  # hex digits of a digest in the name of a folder


def write_scoring(folder: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """Write what `steps`, as recorded, score with into a folder each under ``scoring``.

    One whose record names a path of this machine is left out: nobody else has that model.
    """
    for digest in sorted(_digests(steps)):
        for kind in _KINDS:
            try:
                fitted = kind.of(digest)
            except MissingError:
                continue
            if portable(json.loads(json.dumps(fitted.facts))) == fitted.facts:
                fitted.save(folder / SCORING / _name(kind, digest))


def scoring_files(folder: Path) -> list[Path]:
    """The files under ``scoring`` of a published folder, in order."""
    return sorted(path for path in (folder / SCORING).glob("*/*") if path.is_file())


def take_scoring(folder: Path, steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Copy what `steps` score with from a published folder into this user's store, and nothing else.

    It is kept under the digest of its content, so it takes the place of nothing that is there.

    Returns:
        The kinds of what was taken, and was not there before.

    Raises:
        IntegrityError: A file is not the one that was recorded, or is another artefact than its name says.
    """
    taken = []
    for digest in sorted(_digests(steps)):
        for kind in _KINDS:
            place = folder / SCORING / _name(kind, digest)
            if not place.is_dir() or _is_here(kind, digest):
                continue
            if artifacts.read(place, kind.KIND, kind.VERSION).digest != digest:
                raise IntegrityError(f"{place.name} holds another {kind.KIND}", fix="write the folder again")
            kind.load(place)
            taken.append(kind.KIND)
    return taken


def _is_here(kind: type[Fitted], digest: str) -> bool:
    try:
        kind.of(digest)
    except MissingError:
        return False
    return True


def _digests(steps: Sequence[Mapping[str, Any]]) -> set[str]:
    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str) and _DIGEST.fullmatch(value):
            yield value
        elif isinstance(value, Mapping):
            for part in value.values():
                yield from inside(part)

    return {digest for step in steps for digest in inside(step)}


def _name(kind: type[Fitted], digest: str) -> str:
    return f"{kind.KIND}-{digest.removeprefix('sha256:')[:_LENGTH]}"
