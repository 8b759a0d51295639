"""How fast scores are computed, subspaces fitted and sets split, against the least that the machine must do.

Every measure runs in a process of its own, on files written beforehand; rounds are interleaved and medians taken. The
limit of a score is reading the column and one product with the references, that of a split a copy of the file. Memory
is the process's own (not the mapped files), shown for numbers of rows that grow tenfold twice: it must stay flat.

example:
  python -m benchmarks.scoring
  python -m benchmarks.scoring --rows 1000000 --width 4096 --json scoring.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

LAYER = 12
REFERENCES = 100  # on each side
_CHUNK = 8192
_LARGE_TEXT = "word " * 200


def write_rows(path: Path, n: int, width: int, seed: int = 0, text: bool = False) -> None:
    """An Arrow stream of `n` rows: ids and float16 vectors, or ids, scores and text."""
    from hf_safefilter.columns import embedding_column
    from hf_safefilter.data.batch import to_arrow
    from hf_safefilter.data.ragged import Ragged

    draw = np.random.default_rng(seed)
    mean = draw.normal(size=width).astype(np.float32)
    writer = None
    with path.open("wb") as file:
        for start in range(0, n, _CHUNK):
            count = min(_CHUNK, n - start)
            ids = pa.array([f"{number:032x}" for number in range(start, start + count)])
            if text:
                columns = {
                    "row_id": ids,
                    "larf_score": to_arrow(draw.random(count, np.float32)),
                    "text": pa.array([_LARGE_TEXT] * count),
                }
            else:
                vectors = (draw.standard_normal((count, width), np.float32) + mean).astype(np.float16)
                columns = {"row_id": ids, embedding_column(LAYER): to_arrow(Ragged.one_each(vectors))}
            table = pa.table(columns)
            writer = writer or pa.ipc.new_stream(file, table.schema)
            writer.write_table(table)
        writer.close()


class RandomReader:
    """Reads every row as random numbers: scores ask only for vectors."""

    def __init__(self, width: int) -> None:
        self.width, self.layers = width, (LAYER,)

    def vectors(self, rows: list[dict[str, str]]) -> tuple[Any, list[Any]]:
        """One vector a row, and the conversations."""
        from hf_safefilter.cache import RowVectors
        from hf_safefilter.data.conversations import as_conversations
        from hf_safefilter.data.ragged import offsets_of
        from hf_safefilter.data.spans import SPAN

        count = len(rows)
        seed = 1 if rows[0]["prompt"].startswith("unsafe") else 2
        drawn = np.random.default_rng(seed).standard_normal((count, self.width)).astype(np.float32)
        offsets, spans = offsets_of(np.ones(count, np.int64)), np.zeros(count, SPAN)
        return RowVectors(offsets, spans, {LAYER: drawn}, np.zeros(count, bool), np.full(count, "", object)), (
            as_conversations(rows)
        )

    def describe(self) -> dict[str, str]:
        """As `EmbedLayers.describe`."""
        return {"model": "random"}


def references(width: int) -> Any:
    """An index of random reference vectors."""
    from hf_safefilter.references import ReferenceIndex

    sides = [[{"prompt": f"{side} {n}", "response": "text"} for n in range(REFERENCES)] for side in ("unsafe", "safe")]
    return ReferenceIndex.build(*sides, RandomReader(width), license="cc0-1.0", source="random numbers")


def opened(path: Path) -> Any:
    """The rows of a file, memory-mapped."""
    from datasets import Dataset, disable_caching, disable_progress_bars

    disable_caching()
    disable_progress_bars()
    return Dataset.from_file(str(path))


def limit(path: Path) -> None:
    """Read the column and multiply it once with all references."""
    import torch

    from hf_safefilter.columns import embedding_column
    from hf_safefilter.data.batch import arrow_vectors

    ds = opened(path)
    against = None
    for batch in ds.data.table.to_batches(_CHUNK):
        vectors = torch.from_numpy(arrow_vectors(batch[embedding_column(LAYER)]).values).float()
        if against is None:
            against = torch.randn(vectors.shape[1], 2 * REFERENCES)
        vectors @ against


def scored(name: str, path: Path) -> Callable[[], Any]:
    """Add a score's column, as users do; the references are there already."""
    from hf_safefilter.engine.local import score_rows
    from hf_safefilter.scores import method

    ds = opened(path)
    width = ds.features[next(column for column in ds.column_names if column.startswith("emb"))].feature.length
    step = method(name)(references(width), LAYER)
    score_rows(ds.select(range(1)), step)  # indexes are opened once a process
    return lambda: score_rows(ds, step)


def fitted(path: Path) -> None:
    """Fit SAFT's subspace in one streaming pass."""
    from hf_safefilter.scores.saft import fit_saft

    fit_saft(opened(path), LAYER)


def whole_svd(path: Path) -> None:
    """The same by NumPy on the whole matrix."""
    from hf_safefilter.columns import embedding_column
    from hf_safefilter.data.batch import arrow_vectors

    column = embedding_column(LAYER)
    matrix = arrow_vectors(opened(path).with_format("arrow")[:][column]).values.astype(np.float32)
    np.linalg.svd(matrix, full_matrices=False)


def afresh(run: Callable[[Path], None]) -> Callable[[Path], Callable[[], None]]:
    """What earlier measures wrote is gone, or on the disk, before the clock starts: none waits for another's bytes."""

    def prepare(path: Path) -> Callable[[], None]:
        for pattern in ("safefilter-*.arrow", "cache-*.arrow", "*.copy"):
            for made in path.parent.glob(pattern):
                made.unlink()
        if hasattr(os, "sync"):
            os.sync()
        return partial(run, path)

    return prepare


def parted(path: Path) -> None:
    """Split by a threshold into two flat sets."""
    from hf_safefilter.decide.select import IsSafe, split

    split(opened(path), IsSafe("larf_score", 0.9))


def flattened(path: Path) -> None:
    """What a user of `datasets` does: filter, then flatten."""
    import datasets

    ds = opened(path)
    datasets.enable_caching()
    for keep in (True, False):
        ds.filter(lambda batch, keep=keep: [(one < 0.9) == keep for one in batch["larf_score"]], batched=True
                  ).flatten_indices()  # fmt: skip


def copied(path: Path) -> None:
    """Read the file and write it: the least that writing both parts can take."""
    with path.open("rb") as source, path.with_suffix(".copy").open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)


MEASURES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "limit": lambda path: partial(limit, path),
    "larf": partial(scored, "larf"),
    "nearest": partial(scored, "nearest"),
    "fit_saft": lambda path: partial(fitted, path),
    "numpy svd": lambda path: partial(whole_svd, path),
    "copy": afresh(copied),
    "split": afresh(parted),
    "filter + flatten_indices": afresh(flattened),
}
"""What is prepared before the clock starts, and then timed."""


def own_bytes() -> int:
    """Memory of this process that is not a mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def work(name: str, path: Path, threads: int) -> None:
    """Run one measure and print seconds and the most memory it took beyond what the process began with."""
    if hasattr(os, "sched_setaffinity"):  # every library counts its threads by the processors it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import scipy.linalg  # noqa: F401  (loaded before the clock starts)
    import torch  # noqa: F401

    import hf_safefilter.decide.select  # noqa: F401
    import hf_safefilter.pipeline.purify  # noqa: F401
    import hf_safefilter.scores.nearest  # noqa: F401
    import hf_safefilter.scores.saft  # noqa: F401

    opened(path)
    begin_bytes = most = own_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, own_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run = MEASURES[name](path)
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "bytes": most - begin_bytes}))


def ask(name: str, path: Path, threads: int) -> dict[str, float]:
    """One measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--worker", name, "--file", str(path)]
    command += ["--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(names: list[str], path: Path, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            print(f"round {number + 1} of {rounds}: {name:<30}", end="\r", file=sys.stderr, flush=True)
            found[name].append(ask(name, path, threads))
    return {
        name: {key: statistics.median(one[key] for one in every) for key in ("seconds", "bytes")}
        for name, every in found.items()
    }


def figures(rows: int, width: int, fit_rows: int, fit_width: int, rounds: int, threads: int) -> dict[str, Any]:
    """All measures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sizes = [max(1, rows // 100), max(1, rows // 10), rows]
        found: dict[str, Any] = {
            "threads": threads,
            "rows": rows,
            "width": width,
            "fit_rows": fit_rows,
            "fit_width": fit_width,
        }
        memory: dict[str, list[float]] = {"larf": [], "nearest": [], "split": []}
        for size in sizes:
            write_rows(folder / f"{size}.arrow", size, width)
            write_rows(folder / f"text-{size}.arrow", size, width, text=True)
            for name in memory:
                file = folder / (f"text-{size}.arrow" if name == "split" else f"{size}.arrow")
                memory[name].append(ask(name, file, threads)["bytes"])
        found |= {"sizes": sizes, "memory": memory}
        found["scores"] = measured(["limit", "larf", "nearest"], folder / f"{rows}.arrow", rounds, threads)
        found["splits"] = measured(
            ["copy", "split", "filter + flatten_indices"], folder / f"text-{rows}.arrow", rounds, threads
        )
        write_rows(folder / "fit.arrow", fit_rows, fit_width)
        found["fits"] = measured(["fit_saft", "numpy svd"], folder / "fit.arrow", rounds, threads)
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as text."""
    scores, fits, splits = found["scores"], found["fits"], found["splits"]
    floor = scores["limit"]["seconds"]
    size = f"{found['rows']:,} rows of {found['width']} float16 numbers"
    lines = [f"{size}, {2 * REFERENCES} references; {found['threads']} threads; medians"]
    for name in ("limit", "larf", "nearest"):
        one = scores[name]
        lines.append(f"  {name:<26}{one['seconds']:8.2f} s   {one['seconds'] / floor:5.2f} of the limit"
                     f"   {one['bytes'] / 2**20:7.0f} MiB")  # fmt: skip
    lines.append(f"{found['fit_rows']:,} rows of {found['fit_width']}: leading direction")
    for name, one in fits.items():
        lines.append(f"  {name:<26}{one['seconds']:8.2f} s   {one['bytes'] / 2**20:7.0f} MiB")
    lines.append(f"  ratio {fits['numpy svd']['seconds'] / fits['fit_saft']['seconds']:.1f}")
    lines.append(f"{found['rows']:,} rows with a kilobyte of text: kept and dropped written out")
    for name, one in splits.items():
        lines.append(f"  {name:<26}{one['seconds']:8.2f} s   {one['bytes'] / 2**20:7.0f} MiB")
    lines.append(f"  ratio {splits['filter + flatten_indices']['seconds'] / splits['split']['seconds']:.1f}")
    lines.append("memory in MiB for " + ", ".join(f"{size:,}" for size in found["sizes"]) + " rows")
    for name, every in found["memory"].items():
        lines.append(f"  {name:<26}" + "".join(f"{one / 2**20:8.0f}" for one in every))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows scored and split (100000)")
    parser.add_argument("--width", type=int, default=1024, help="numbers a vector (1024)")
    parser.add_argument("--fit-rows", type=int, default=20_000, help="rows a subspace is fitted to (20000)")
    parser.add_argument("--fit-width", type=int, default=1024, help="their width (1024)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    threads = max(1, (os.cpu_count() or 2) // 2)
    parser.add_argument("--threads", type=int, default=threads, help="processors of every measure (half)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--worker", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.file, given.threads)
        return
    found = figures(given.rows, given.width, given.fit_rows, given.fit_width, given.rounds, given.threads)
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
