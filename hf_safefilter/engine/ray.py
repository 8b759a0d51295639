"""Steps on Ray Data: a pool of actors, on this machine or a cluster, each with the model in memory.

One reader, on the machine where it is called, cuts the rows into pieces; Ray hands them to whichever actor is free,
holds the reader back when the actors are busy, and hands a piece out again when an actor died over it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_safefilter.data.arrow_files import lay_down
from hf_safefilter.engine.ordered import NewColumns, Piece, Sample, cut, in_order, pack, some_rows, unpack
from hf_safefilter.engine.ray_session import import_ray, running
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_safefilter.step import Step

_HANDED_DOWN = ("HF_SAFEFILTER_CACHE", "HF_SAFEFILTER_ROW_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
_DEATHS = 8  # of one actor in a run, before it is not chance any more


class StepActor:
    """Steps as Ray's actor pools want them: a class. The model is loaded once an actor, at its first batch.

    ``rows.map_batches(StepActor, fn_constructor_args=(embed_layers, score), batch_format="pyarrow",
    compute=ray.data.ActorPoolStrategy(size=2))``. As tasks, a step goes in as it is:
    ``rows.map_batches(embed_layers, batch_format="pyarrow")``. Only with ``batch_format="pyarrow"`` do embeddings stay
    fixed-size lists, which `datasets` reads; Ray does not keep the order of rows.

    Args:
        steps: carried out one after the other.
    """

    def __init__(self, *steps: Step) -> None:
        self._steps = steps

    def __call__(self, batch: Any) -> Any:
        """Rows in, rows with the new columns out."""
        for step in self._steps:
            batch = step(batch)
        return batch


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Carries out steps in a pool of Ray actors; for `purify(engine=...)`, or by itself.

    A cluster that this process is connected to, or that ``RAY_ADDRESS`` names, is used; else Ray is started on this
    machine, without dashboard or usage reports, and stopped afterwards.

    Values are those of the plain way to the last bit where device and number of threads are the same, else to rounding.

    Held in memory here: pieces that came before their turn. On disk here: the new columns. An actor holds its model and
    a few pieces. Artefacts and row cache are found by the actors at the same paths as here: on a cluster, let
    ``HF_SAFEFILTER_CACHE`` be a folder that all machines see.

    Args:
        actors: how many, each with a model of its own.
        gpus_per_actor: 1 gives each its own GPU; 0 none.
        cpus_per_actor: processors, and threads, of each.

    Raises:
        OptionError: numbers that make no pool.
        MissingError: Ray is not installed.
    """

    actors: int = 1
    gpus_per_actor: float = 0
    cpus_per_actor: int = 1

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus_per_actor < 1:
            raise OptionError("a pool needs an actor, and an actor a processor", fix="use 1 or more of each")
        if self.gpus_per_actor < 0:
            raise OptionError(f"gpus_per_actor={self.gpus_per_actor} is no share of a GPU", fix="use 0, 1, or 0.5")
        import_ray()

    def add(
        self, rows: Dataset | DatasetDict, steps: Sequence[Step], *, without: Sequence[str] = ()
    ) -> Dataset | DatasetDict:
        """`rows` with the columns of `steps` beside their own, in their order: what `Dataset.map` gives.

        Args:
            rows: in memory or on this machine's disk.
            steps: carried out one after the other.
            without: columns that stay where they were computed, such as vectors that only a score needs.

        Raises:
            DataError: there are no rows, or a step refuses them.
            SafefilterError: actors died again and again.
        """
        from datasets import DatasetDict, concatenate_datasets

        if isinstance(rows, Mapping):
            return DatasetDict({name: self.add(part, steps, without=without) for name, part in rows.items()})
        bring = [name for step in steps for name in step.produces() if name not in without]
        found = self.columns(rows, steps, bring).rows
        return concatenate_datasets([rows, found], axis=1, split=rows.split)

    def columns(self, rows: Dataset | IterableDataset, steps: Sequence[Step], bring: Sequence[str]) -> NewColumns:
        """See `Engine.columns`; raises as `add` does."""
        sample = Sample()
        with running(self.actors, self.cpus_per_actor, self.gpus_per_actor) as ray:
            found = lay_down(in_order(self._pieces(ray, rows, list(steps), list(bring), sample)), split=rows.split)
        return sample.beside(found)

    def _pieces(self, ray: Any, rows: Any, steps: list[Step], bring: list[str], sample: Sample) -> Iterator[Piece]:
        from ray.data import ActorPoolStrategy

        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        environment = {name: os.environ[name] for name in _HANDED_DOWN if name in os.environ}
        # A reader that asks for a processor would wait for ever where the actors have them all.
        read = ray.data.from_items([0]).map_batches(
            _Reader(rows), batch_size=None, batch_format="pyarrow", num_cpus=0, label_selector=here
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # restarts can be limited in no other way yet
            done = read.map_batches(
                _PieceActor,
                fn_constructor_args=(steps, bring, environment),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=self.actors),
                num_cpus=self.cpus_per_actor,
                num_gpus=self.gpus_per_actor or None,
                ray_remote_args_fn=_restarts,
            )
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                sample.offer(row["start"], row["places"], unpack(row["sample"]))
                yield Piece(row["start"], row["last"], unpack(row["rows"]))


class _Reader:
    """Yields the pieces of a set, a row of Ray's each."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __call__(self, _: Any) -> Iterator[pa.Table]:
        for piece in cut(self._rows):
            yield _parcel(piece)


class _PieceActor:
    """Carries out steps on one piece after the other."""

    def __init__(self, steps: list[Step], bring: list[str], environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._steps, self._bring = StepActor(*steps), bring

    def __call__(self, batch: pa.Table) -> pa.Table:
        [row] = batch.to_pylist()
        table = unpack(row["rows"])
        done = self._steps(table).select(self._bring)
        places, some = some_rows(table)
        sample = {"places": pa.array([places], pa.list_(pa.int64())), "sample": _bytes(some)}
        return _parcel(Piece(row["start"], row["last"], done), **sample)


def _parcel(piece: Piece, **more: pa.Array) -> pa.Table:
    return pa.table({"start": [piece.start], "last": [piece.last], "rows": _bytes(piece.table)} | more)


def _bytes(table: pa.Table) -> pa.Array:
    return pa.array([pack(table)], pa.large_binary())


def _restarts() -> dict[str, Any]:
    return {"max_restarts": _DEATHS, "max_task_retries": _DEATHS}
