"""One data set embedded by many machines: each takes a shard, and `merge` puts together what they wrote.

A shard is a contiguous part of the rows, so that shards in order are the rows in order. Each is written whole or not at
all into a folder of its own under one output; a shard that is there is not made again. Nobody needs to know of the
others: any launcher will do that tells each process its number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError
from hf_safefilter.saved.saved_rows import TRAIL, Trail
from hf_safefilter.storage.atomic import require_replaceable

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset, DatasetDict

    from hf_safefilter.data.load_rows import Loaded
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)

_ALL = ""  # in place of a split's name, where there are no splits
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`, counted from 0.

    Raises:
        OptionError: there is no such part.
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
        """This part of `rows`; of every split, where there are several."""

        def part(split: Dataset) -> Dataset:
            start, stop = self.bounds(len(split))
            return split.select(range(start, stop) if stop > start else [])  # an empty range past the end is refused

        return _each(rows, part)

    def bounds(self, total: int) -> tuple[int, int]:
        """First row of this part of `total`, and one past the last; parts differ by one row at most."""
        least, more = divmod(total, self.count)
        return tuple(least * index + min(index, more) for index in (self.index, self.index + 1))  # type: ignore[return-value]

    def folder(self, output: Path) -> Path:
        """Where it lies under `output`."""
        return output / f"shard-{self.index:05d}-of-{self.count:05d}"


def embed_shard(
    loaded: Loaded, step: Step, output: Path, shard: Shard, embed: Callable[[Any, Any], Any]
) -> tuple[Path, bool]:
    """Embed one shard into its folder under `output`, unless that is done.

    Args:
        loaded: all rows, from `load_rows`.
        step: the embedder.
        output: folder of all shards.
        shard: which part.
        embed: how, e.g. `pipeline.embed_rows`: (rows, step) -> rows with its columns.

    Returns:
        The shard's folder, and whether it was there already.

    Raises:
        OptionError: `output` holds shards of another number, model or data set, or the shard's folder is another's.
    """
    folder = shard.folder(output)
    lengths = {name: len(rows) for name, rows in _splits(loaded.rows).items()}
    trail = Trail(loaded.name, loaded.revision, [step.record()], {**asdict(shard), "rows": lengths})
    _refuse_strangers(output, trail)
    if _is_whole(folder, trail):
        return folder, True
    require_replaceable(folder, TRAIL)
    rows = embed(shard.of(loaded.rows), step)
    try:
        trail.save(rows, folder)
    except OSError:
        if not _is_whole(folder, trail):  # else somebody was asked for the same shard, and was faster
            raise
        return folder, True
    return folder, False


def _refuse_strangers(output: Path, trail: Trail) -> None:
    for folder in _shard_folders(output):
        try:
            found = Trail.read(folder)
        except IntegrityError:  # made again by whoever is asked for it, and refused by merge until then
            continue
        if (other := _difference(trail, found)) is not None:
            raise OptionError(
                f"{output} holds shards of another {other[0]}",
                found=f"{folder.name}: {other[2]}, not {other[1]}",
                fix="choose another --output, or delete those shards",
            )


def _is_whole(folder: Path, trail: Trail) -> bool:
    if not (folder / TRAIL).is_file():
        return False
    try:
        _load(folder, Trail.read(folder))
    except IntegrityError as error:
        logger.warning("%s: it is made again", error.fact)
        return False
    return True


@dataclass(frozen=True, slots=True)
class Merged:
    """Shards put together: how many, and how many rows."""

    shards: int
    rows: int


def merge(folders: Sequence[Path], output: Path) -> Merged:
    """Put shards together into the folder that one run over all rows would have written.

    Args:
        folders: shards in any order, or folders of shards.
        output: folder to write; may not be one of those.

    Raises:
        OptionError: `output` is one of the shards.
        MissingError: no shards there, or not all.
        DataError: one twice, or shards of different numbers, models, options or data sets.
        IntegrityError: a shard that is damaged or has lost rows.
    """
    from datasets import concatenate_datasets

    found = {folder: Trail.read(folder) for given in folders for folder in _given(Path(given))}
    if Path(output).resolve() in {folder.resolve() for folder in found}:
        raise OptionError(f"{output} is one of the shards", fix="choose another --output")
    _refuse_a_mixture(found)
    in_order = sorted(found, key=lambda folder: found[folder].shard["index"])
    parts = [_splits(_load(folder, found[folder])) for folder in in_order]
    joined = {}
    for name in parts[0]:
        # a shard of a short set may be empty, and then lacks the columns that nothing filled
        filled = [part[name] for part in parts if len(part[name])] or [parts[0][name]]
        if any(one.features != filled[0].features for one in filled):
            raise DataError("the shards have different columns", fix="embed them all with one version of this program")
        joined[name] = concatenate_datasets(filled)
    first = found[in_order[0]]
    Trail(first.name, first.revision, first.steps).save(_unsplit(joined), output)
    return Merged(len(parts), sum(map(len, joined.values())))


def _given(folder: Path) -> list[Path]:
    if (folder / TRAIL).is_file():
        if Trail.read(folder).shard is None:
            raise DataError(f"{folder} is no shard: it holds all rows of a run", fix="name the folders of shards")
        return [folder]
    if not (inside := _shard_folders(folder)):
        raise MissingError(
            f"{folder} holds no shards", fix="make them: hf-safefilter embed --shard 0 --num-shards 8 ..."
        )
    return inside


def _shard_folders(output: Path) -> list[Path]:
    if not output.is_dir():
        return []
    return sorted(folder for folder in output.glob("shard-*-of-*") if (folder / TRAIL).is_file())


def _refuse_a_mixture(found: Mapping[Path, Trail]) -> None:
    (first, expected), *others = found.items()
    for folder, trail in others:
        if (other := _difference(expected, trail)) is not None:
            raise DataError(
                f"these are shards of more than one {other[0]}",
                found=f"{first.name}: {other[1]}; {folder.name}: {other[2]}",
                fix="name the shards of one run only",
            )
    at: dict[int, Path] = {}
    for folder, trail in found.items():
        if (twin := at.setdefault(trail.shard["index"], folder)) != folder:
            raise DataError(
                f"shard {trail.shard['index']} was given twice", found=f"{twin} and {folder}", fix="name it once"
            )
    count = expected.shard["count"]
    if missing := [str(index) for index in range(count) if index not in at]:
        raise MissingError(
            f"{len(missing)} of {count} shards are missing",
            found="not there: " + ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else ""),
            fix=f"make them: hf-safefilter embed ... --shard {missing[0]} --num-shards {count}",
        )


def _difference(one: Trail, other: Trail) -> tuple[str, Any, Any] | None:
    """What two shards must have in common and have not: its name, and both values."""
    if other.shard is None:
        return "run", "shards", "all rows"
    pairs = [
        ("number of shards", one.shard["count"], other.shard["count"]),
        ("data set", f"{one.name} at {one.revision}", f"{other.name} at {other.revision}"),
        ("data set", one.shard["rows"], other.shard["rows"]),
    ]
    for mine, theirs in zip(one.steps, other.steps, strict=False):
        names = sorted({*mine, *theirs} - {"device", "attn"})  # where and how it was computed, not what
        pairs += [(name, mine.get(name), theirs.get(name)) for name in names]
    pairs.append(("number of steps", len(one.steps), len(other.steps)))
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def _load(folder: Path, trail: Trail) -> Dataset | DatasetDict:
    """The rows of a shard: as many as it must have, each of them there."""
    from datasets import load_from_disk

    try:
        shard, lengths = Shard(trail.shard["index"], trail.shard["count"]), dict(trail.shard["rows"])
        rows = load_from_disk(str(folder))
        found = {name: len(split) for name, split in _splits(rows).items()}
        bounds = {name: shard.bounds(total) for name, total in lengths.items()}
        for split in _splits(rows).values():
            split.data.validate()
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        again = "delete it, and make it again"
        raise IntegrityError(f"{folder} is damaged", found=f"{type(error).__name__}: {error}", fix=again) from error
    expected = {name: stop - start for name, (start, stop) in bounds.items()}
    if found != expected:
        raise IntegrityError(
            f"{folder} has not the rows it must have",
            found=f"{sum(found.values())} instead of {sum(expected.values())}",
            fix="delete it, and make it again",
        )
    return rows


def _splits(rows: Any) -> dict[str, Dataset]:
    return dict(rows) if isinstance(rows, Mapping) else {_ALL: rows}


def _unsplit(splits: dict[str, Dataset]) -> Dataset | DatasetDict:
    from datasets import DatasetDict

    return splits[_ALL] if _ALL in splits else DatasetDict(splits)


def _each(rows: Dataset | DatasetDict, work: Callable[[Dataset], Dataset]) -> Dataset | DatasetDict:
    return _unsplit({name: work(split) for name, split in _splits(rows).items()})
