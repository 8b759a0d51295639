"""One data set embedded by many machines: each embeds a shard, and `merge` joins the shards.

A shard is a contiguous part of the rows, so that shards in order are the rows in order. Each is written, whole or not
at all, into a folder of its own under one output; a shard that exists already is not made again. The machines need not
know of each other: any launcher that gives each process its number can be used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_safefilter.data.saved_folders import open_saved
from hf_safefilter.data.splits import each_split, joined, splits_of
from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError
from hf_safefilter.model.reading_options import HOW
from hf_safefilter.saved.saved_rows import TRAIL, Trail
from hf_safefilter.storage.atomic import require_replaceable

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset, DatasetDict

    from hf_safefilter.data.load_rows import Loaded
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)

_SHOWN = 12  # missing shards that an error lists


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`, counted from 0.

    Raises:
        OptionError: There is no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise OptionError(
                f"there is no shard {self.index} of {self.count}",
                fix=f"shards are counted from 0: use 0 to {max(self.count, 1) - 1}",
            )

    def of(self, rows: Dataset | DatasetDict) -> Dataset | DatasetDict:
        """This part of `rows`, or of each of their splits."""

        def part(split: Dataset) -> Dataset:
            start, stop = self.bounds(len(split))
            # `datasets` refuses an empty range past the end
            return split.select(range(start, stop) if stop > start else [])

        return each_split(rows, part)

    def bounds(self, total: int) -> tuple[int, int]:
        """First row of this part of `total` rows, and one past the last; parts differ by one row at most."""
        size, larger = divmod(total, self.count)
        start, stop = (size * index + min(index, larger) for index in (self.index, self.index + 1))
        return start, stop

    def folder(self, output: Path) -> Path:
        """Folder of this shard under `output`."""
        return output / f"shard-{self.index:05d}-of-{self.count:05d}"


def embed_shard(
    loaded: Loaded,
    step: Step,
    output: Path,
    shard: Shard,
    embed: Callable[[Dataset | DatasetDict, Any], Dataset | DatasetDict],
) -> tuple[Path, bool]:
    """Embed one shard into its folder under `output`, unless it is there already.

    Args:
        loaded: All rows, from `load_rows`.
        step: The embedder.
        output: Folder of all shards.
        shard: Which part to embed.
        embed: A function (rows, step) -> rows with the columns of the step, such as `engine.local.embed_rows`.

    Returns:
        The shard's folder, and whether it was there already.

    Raises:
        OptionError: `output` holds shards of another number, model or data set, or other files in the shard's folder.
    """
    folder = shard.folder(output)
    lengths = {name: len(rows) for name, rows in splits_of(loaded.rows).items()}
    trail = Trail(loaded.name, loaded.revision, [step.record()], {**asdict(shard), "rows": lengths})
    _require_same_run(output, trail)
    if _is_whole(folder, trail):
        return folder, True
    require_replaceable(folder, TRAIL)
    rows = embed(shard.of(loaded.rows), step)
    try:
        trail.save(rows, folder, loaded.require_unchanged)
    except OSError:
        if not _is_whole(folder, trail):  # otherwise another process made the same shard first
            raise
        return folder, True
    return folder, False


def _require_same_run(output: Path, trail: Trail) -> None:
    """Raise unless all shards in `output` are of the run that `trail` describes."""
    for folder in _shard_folders(output):
        try:
            existing = Trail.read(folder)
        except IntegrityError:  # it is made again when it is asked for, and refused by merge until then
            continue
        if (difference := _difference(trail, existing)) is not None:
            name, ours, theirs = difference
            raise OptionError(
                f"{output} holds shards of another {name}",
                found=f"{folder.name}: {theirs}, not {ours}",
                fix="choose another `output=...`, or delete those shards",
            )


def _is_whole(folder: Path, trail: Trail) -> bool:
    if not (folder / TRAIL).is_file():
        return False
    try:
        verified = Trail.verified(folder)
        _load(folder, verified)
    except IntegrityError as error:
        logger.warning("%s; it is made again", error.fact)
        return False
    return verified.shard == trail.shard and _difference(trail, verified) is None


@dataclass(frozen=True, slots=True)
class Merged:
    """Number of shards that were joined, and of their rows."""

    shards: int
    rows: int


def merge(folders: Sequence[Path], output: Path, *, trust_vectors: bool = False) -> Merged:
    """Join shards into the folder that one run over all rows would have written.

    Args:
        folders: Shards in any order, or folders of shards.
        output: Folder to write; it may not be one of the shards.
        trust_vectors: Whether shards of machines that do not share this one's key are believed; cards then say so.

    Raises:
        OptionError: `output` is one of the shards.
        MissingError: Some or all shards are missing.
        DataError: A shard is given twice, or shards are of different numbers, models, options or data sets.
        IntegrityError: A shard was altered, has lost rows, or is from elsewhere and not trusted.
    """
    from datasets import concatenate_datasets

    trails = {shard: Trail.read(shard) for folder in folders for shard in _shards_in(Path(folder))}
    for folder, trail in trails.items():
        if trail.shard is None:
            raise DataError(f"{folder} is no shard: it holds all rows of a run", fix="name the folders of shards")
    if Path(output).resolve() in {folder.resolve() for folder in trails}:
        raise OptionError(f"{output} is one of the shards", fix="choose another `output=...`")
    _require_one_whole_run(trails)
    in_order = sorted(trails, key=lambda folder: _shard_facts(trails[folder])["index"])
    verified = [Trail.verified(folder, trust_vectors=trust_vectors) for folder in in_order]
    parts = [splits_of(_load(folder, trail)) for folder, trail in zip(in_order, verified, strict=True)]
    splits: dict[str, Dataset] = {}
    for name in parts[0]:
        # a shard of a short data set may be empty, and then lacks the columns that no step has filled
        filled = [part[name] for part in parts if len(part[name])] or [parts[0][name]]
        if any(part.features != filled[0].features for part in filled):
            raise DataError("the shards have different columns", fix="embed them all with one version of this program")
        splits[name] = concatenate_datasets(filled)
    first, trusted = verified[0], any(trail.trusted for trail in verified)
    Trail(first.name, first.revision, first.steps, trusted=trusted).save(joined(splits), output)
    return Merged(len(parts), sum(map(len, splits.values())))


def _shards_in(folder: Path) -> list[Path]:
    """The folder itself if it is a shard, else the shards in it."""
    if (folder / TRAIL).is_file():
        return [folder]
    if not (shards := _shard_folders(folder)):
        raise MissingError(
            f"{folder} holds no shards", fix="make them: hf-safefilter embed --shard 0 --num-shards 8 ..."
        )
    return shards


def _shard_folders(output: Path) -> list[Path]:
    if not output.is_dir():
        return []
    return sorted(folder for folder in output.glob("shard-*-of-*") if (folder / TRAIL).is_file())


def _require_one_whole_run(trails: Mapping[Path, Trail]) -> None:
    """Raise unless the shards are of one run, and each of its shards is given once."""
    (first, expected), *others = trails.items()
    for folder, trail in others:
        if (difference := _difference(expected, trail)) is not None:
            name, value, other_value = difference
            raise DataError(
                f"these are shards of more than one {name}",
                found=f"{first.name}: {value}; {folder.name}: {other_value}",
                fix="name the shards of one run only",
            )
    by_index: dict[int, Path] = {}
    for folder, trail in trails.items():
        index = _shard_facts(trail)["index"]
        if (twin := by_index.setdefault(index, folder)) != folder:
            raise DataError(f"shard {index} was given twice", found=f"{twin} and {folder}", fix="name it once")
    count = _shard_facts(expected)["count"]
    if missing := [str(index) for index in range(count) if index not in by_index]:
        raise MissingError(
            f"{len(missing)} of {count} shards are missing",
            found="missing: " + ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else ""),
            fix=f"make them: hf-safefilter embed ... --shard {missing[0]} --num-shards {count}",
        )


def _difference(first: Trail, second: Trail) -> tuple[str, Any, Any] | None:
    """Name and both values of something in which two shards of one run may not differ, but do."""
    if second.shard is None:
        return "run", "shards", "all rows"
    facts, other_facts = _shard_facts(first), second.shard
    pairs = [
        ("number of shards", facts["count"], other_facts["count"]),
        ("data set", f"{first.name} at {first.revision}", f"{second.name} at {second.revision}"),
        ("data set", facts["rows"], other_facts["rows"]),
    ]
    for record, other in zip(first.steps, second.steps, strict=False):
        names = sorted({*record, *other} - HOW)
        pairs += [(name, record.get(name), other.get(name)) for name in names]
    pairs.append(("number of steps", len(first.steps), len(second.steps)))
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def _shard_facts(trail: Trail) -> dict[str, Any]:
    """What the trail of a shard says about the shard: "index", "count" and "rows"."""
    if trail.shard is None:
        raise TypeError("this is no shard")
    return trail.shard


def _load(folder: Path, trail: Trail) -> Dataset | DatasetDict:
    """The rows of a shard, after a check that none is missing or damaged."""
    try:
        facts = _shard_facts(trail)
        shard, totals = Shard(facts["index"], facts["count"]), dict(facts["rows"])
        rows = open_saved(folder)
        lengths = {name: len(split) for name, split in splits_of(rows).items()}
        bounds = {name: shard.bounds(total) for name, total in totals.items()}
        for split in splits_of(rows).values():
            split.data.validate()
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{folder} is damaged", found=f"{type(error).__name__}: {error}", fix="delete it and make it again"
        ) from error
    expected = {name: stop - start for name, (start, stop) in bounds.items()}
    if lengths != expected:
        raise IntegrityError(
            f"{folder} does not have the expected number of rows",
            found=f"{sum(lengths.values())} instead of {sum(expected.values())}",
            fix="delete it and make it again",
        )
    return rows
