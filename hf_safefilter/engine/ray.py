"""Steps on Ray Data: a pool of actors, on this machine or a cluster, each with the model in memory.

One reader, on this machine, cuts the rows into pieces. Ray gives each piece to an actor that is free, pauses the reader
while all actors are busy, and gives a piece to another actor when an actor died.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_safefilter.checks import require_number, require_whole
from hf_safefilter.data.arrow_files import write_tables
from hf_safefilter.data.splits import each_split
from hf_safefilter.engine.ordered import NewColumns, Piece, Sample, cut, in_order, pack, some_rows, unpack
from hf_safefilter.engine.ray_session import import_ray, running

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_safefilter.step import Step

_FORWARDED = ("HF_SAFEFILTER_CACHE", "HF_SAFEFILTER_ROW_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
_DEATHS = 8  # of one actor, after which the run is given up


class StepActor:
    """Steps as a class, which Ray's actor pools require. Each actor loads the model once, at its first batch.

    ``rows.map_batches(StepActor, fn_constructor_args=(embed_layers, score), batch_format="pyarrow",
    compute=ray.data.ActorPoolStrategy(size=2))``. Tasks take a step as it is:
    ``rows.map_batches(embed_layers, batch_format="pyarrow")``. Only with ``batch_format="pyarrow"`` do embeddings stay
    fixed-size lists, which `datasets` reads; Ray does not keep the order of rows.

    Args:
        steps: The steps, which are run one after the other.
    """

    def __init__(self, *steps: Step) -> None:
        self._steps = steps

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch with the new columns."""
        for step in self._steps:
            batch = step(batch)
        return batch


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Runs steps in a pool of Ray actors; for `purify(engine=...)`, or by itself.

    A cluster that this process is connected to, or that ``RAY_ADDRESS`` names, is used; otherwise Ray is started on
    this machine, without dashboard or usage reports, and stopped afterwards.

    Values equal those of this process to the last bit where device and number of threads are the same, and otherwise up
    to rounding.

    Pieces that come too early wait in the memory of this machine; the new columns are written to its disk. An actor
    holds its model and a few pieces. Actors look for artefacts and the row cache at the same paths as this process: on
    a cluster, set ``HF_SAFEFILTER_CACHE`` to a folder that all machines can read.

    Args:
        actors: Number of actors, each with a model of its own.
        gpus_per_actor: GPUs of each actor: 1, a share of one such as 0.5, or 0 for none.
        cpus_per_actor: Processors, and so threads, of each actor.

    Raises:
        OptionError: A number is not allowed.
        MissingError: Ray is not installed.
    """

    actors: int = 1
    gpus_per_actor: float = 0
    cpus_per_actor: int = 1

    def __post_init__(self) -> None:
        require_whole("actors", self.actors, least=1)
        require_whole("cpus_per_actor", self.cpus_per_actor, least=1)
        require_number("gpus_per_actor", self.gpus_per_actor, least=0)
        import_ray()

    def add(
        self, rows: Dataset | DatasetDict, steps: Sequence[Step], *, without: Sequence[str] = ()
    ) -> Dataset | DatasetDict:
        """`rows` with the columns of `steps` added, in the same order: the result of `Dataset.map`.

        Args:
            rows: Rows in memory or on the disk of this machine.
            steps: The steps, which are run one after the other.
            without: Columns that are not returned, such as vectors that only a score needs.

        Raises:
            DataError: There are no rows, or a step refuses them.
            SafefilterError: Actors died again and again.
        """
        names = [name for step in steps for name in step.produces() if name not in without]

        def add(part: Dataset) -> Dataset:
            from datasets import concatenate_datasets

            return concatenate_datasets([part, self.columns(part, steps, names).rows], axis=1, split=part.split)

        return each_split(rows, add)

    def columns(self, rows: Dataset | IterableDataset, steps: Sequence[Step], names: Sequence[str]) -> NewColumns:
        """See `Engine.columns`; raises the same errors as `add`."""
        sample = Sample()
        with running(self.actors, self.cpus_per_actor, self.gpus_per_actor) as ray:
            pieces = self._pieces(ray, rows, list(steps), list(names), sample)
            columns = write_tables(_counted(in_order(pieces), rows), split=rows.split)
        return sample.with_columns(columns)

    def _pieces(
        self, ray: Any, rows: Dataset | IterableDataset, steps: list[Step], names: list[str], sample: Sample
    ) -> Iterator[Piece]:
        """The pieces of `rows` with the columns `names`, in any order; some of their rows are added to `sample`."""
        from ray.data import ActorPoolStrategy

        this_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        environment = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
        # A reader that asks for a processor would wait for ever where the actors use all of them.
        read = ray.data.from_items([0]).map_batches(
            _Reader(rows), batch_size=None, batch_format="pyarrow", num_cpus=0, label_selector=this_node
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way yet to limit restarts
            results = read.map_batches(
                _PieceActor,
                fn_constructor_args=(steps, names, environment),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=self.actors),
                num_cpus=self.cpus_per_actor,
                num_gpus=self.gpus_per_actor or None,
                ray_remote_args_fn=_restarts,
            )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                sample.offer(row["start"], row["indices"], unpack(row["sample"]))
                yield Piece(row["start"], row["last"], unpack(row["rows"]))


def _counted(tables: Iterator[pa.Table], rows: Dataset | IterableDataset) -> Iterator[pa.Table]:
    """The tables, with a bar that counts their rows, of how many if `rows` has a length."""
    from datasets.utils import tqdm

    with tqdm(total=len(rows) if hasattr(rows, "__len__") else None, desc="Rows", unit=" rows") as bar:
        for table in tables:
            yield table
            bar.update(table.num_rows)


class _Reader:
    """Yields the pieces of a data set, each as a table of one row."""

    def __init__(self, rows: Dataset | IterableDataset) -> None:
        self._rows = rows

    def __call__(self, _: Any) -> Iterator[pa.Table]:
        for piece in cut(self._rows):
            yield _packed(piece)


class _PieceActor:
    """Runs steps on one piece after the other."""

    def __init__(self, steps: list[Step], names: list[str], environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._steps, self._names = StepActor(*steps), names

    def __call__(self, batch: pa.Table) -> pa.Table:
        [row] = batch.to_pylist()
        table = unpack(row["rows"])
        columns = self._steps(table).select(self._names)
        indices, rows = some_rows(table)
        sample = {"indices": pa.array([indices], pa.list_(pa.int64())), "sample": _bytes(rows)}
        return _packed(Piece(row["start"], row["last"], columns), **sample)


def _packed(piece: Piece, **more: pa.Array) -> pa.Table:
    return pa.table({"start": [piece.start], "last": [piece.last], "rows": _bytes(piece.table)} | more)


def _bytes(table: pa.Table) -> pa.Array:
    return pa.array([pack(table)], pa.large_binary())


def _restarts() -> dict[str, Any]:
    return {"max_restarts": _DEATHS, "max_task_retries": _DEATHS}
