"""What the row cache costs and what it saves: killed jobs, in pairs on one store, and the price of a run that is not.

A job embeds rows with the toy model, batch by batch, and reports each batch that it has finished. It is killed with
SIGKILL at a random moment, and begun again, until it gets through; beside it a second job works on the same rows from
the other end, in the same store, and is killed too. What no kill may do: lose a batch that was reported, or change a
value.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import part
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.storage.artifacts import store_root
from hf_safefilter.toy.corpus import mixed_rows

EXAMPLE = """example:
  python -m benchmarks.resume
  python -m benchmarks.resume --kills 20 --rows 3000 --json resume.json
"""
BATCH = 50


def main() -> None:
    """Kill, compare, time, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resume",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, help="jobs killed (20)")
    parser.add_argument("--rows", type=int, default=3000, help="rows embedded (3000)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each kind of run (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_SAFEFILTER_CACHE"] = scratch
        figures = kill(options.kills, options.rows, options.seed) | cost(options.rounds, options.rows)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def rows_of(count: int) -> list[dict[str, Any]]:
    """Distinct rows of the toy corpus."""
    return [{"prompt": row["prompt"], "response": row["response"]} for row in mixed_rows(count, 0.1, 11)]


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A batch, as `Dataset.map` would pass it."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def embed(rows: list[dict[str, Any]], report: Any = None) -> np.ndarray:
    """Vectors of layer 4, float16, batch by batch; `report(row)` after each batch."""
    step, found = EmbedLayers("toy", layers=[4], device="cpu"), []
    for at in range(0, len(rows), BATCH):
        found += step(columns(rows[at : at + BATCH]))["emb_layer_4"]
        cache.flush()
        if report is not None:
            report(at)
    return np.concatenate(found)


# Kills


def kill(kills: int, count: int, seed: int) -> dict[str, Any]:
    """Kill `kills` jobs, two at a time on one store; then let one through.

    Every child is forked from this process before it has computed anything, so that a round takes the time of its job
    and not that of importing torch; each loads its model and opens the store anew.
    """
    rng, rows = random.Random(seed), rows_of(count)
    os.environ[cache.SWITCH] = "on"
    import_all()
    killed = finished = lost = 0
    kept: list[int] = []
    while killed < kills:
        if kept and kept[-1] == count:  # nothing is left to do: begin with an empty store
            shutil.rmtree(store_root() / "rows")
        jobs = [Job(rows), Job(rows[::-1])]
        jobs[0].wait_for_a_report()  # on a busy machine every kill would else come before there is anything to lose
        for job in jobs:
            time.sleep(rng.uniform(0.0, 0.8))
            killed += (was := job.kill())
            finished += not was
        there = stored()
        kept.append(len(there))
        lost += sum(len(set(job.reported()) - there) for job in jobs)
    warm = Job(rows, "warm.npy").wait()
    shutil.rmtree(store_root() / "rows")
    whole = Job(rows, "whole.npy").wait()
    difference = np.abs(warm.astype(np.float32) - whole) / (1 + np.abs(whole.astype(np.float32)))
    return {
        "kills": killed,
        "jobs that got through": finished,
        "rows": count,
        "rows kept after each pair": kept,
        "reported rows lost": lost,
        "largest relative difference from one run": float(difference.max()),
        "share of values that differ": float((difference > 0).mean()),
    }


def import_all() -> None:
    """Import what a job imports, and compute nothing: threads of torch would not survive the fork."""
    import transformers

    from hf_safefilter.model import forward  # noqa: F401

    EmbedLayers("toy", layers=[4], device="cpu").describe()
    for name in ("AutoModel", "LlamaModel"):
        getattr(transformers, name)


class Job:
    """A child process that embeds `rows` and reports, through a pipe, the first row of each batch it has finished."""

    def __init__(self, rows: list[dict[str, Any]], result: str | None = None) -> None:
        self._rows, self._result = rows, result
        self._read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            found = embed(rows, lambda at: os.write(write, at.to_bytes(4, "big")))
            if result is not None:
                np.save(store_root() / result, found)
            os._exit(0)
        os.close(write)

    def wait_for_a_report(self) -> None:
        """Until it has finished a batch."""
        select.select([self._read], [], [], 120)

    def kill(self) -> bool:
        """SIGKILL; whether it was still at work."""
        os.kill(self.pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])

    def reported(self) -> list[str]:
        """Ids of the rows of all batches that it said it had finished."""
        with os.fdopen(self._read, "rb") as pipe:
            said = np.frombuffer(pipe.read(), ">u4").tolist()
        done = [row for at in said for row in self._rows[at : at + BATCH]]
        return [row_id(one) for one in as_conversations(done)] if done else []

    def wait(self) -> np.ndarray:
        """What it wrote, once it has ended well."""
        if os.waitpid(self.pid, 0)[1]:
            raise SystemExit("a job that nobody killed did not end well; its message stands above")
        return np.load(store_root() / self._result)


def stored() -> set[str]:
    """Ids of all rows in the store, each part verified."""
    found: set[str] = set()
    for path in (store_root() / "rows").rglob("*.arrow"):
        part.verify(path)
        mark = part.mark_of(path.parent.parent.name, path.parent.name)
        found |= {bytes(one).hex() for one in part.ids_of(path, mark, 128)}
    return found


# Cost


def cost(rounds: int, count: int) -> dict[str, Any]:
    """Seconds of a run without the cache, of the first with it, and of the second; medians of interleaved rounds."""
    scratch, rows = store_root(), columns(rows_of(count))
    step = EmbedLayers("toy", layers=[4], device="cpu")
    seconds: dict[str, list[float]] = {"off": [], "cold": [], "warm": []}
    work: dict[str, list[float]] = {"off": [], "cold": [], "warm": []}

    def timed(kind: str) -> None:
        begin, busy = time.perf_counter(), time.process_time()
        step(rows)
        cache.flush()
        seconds[kind].append(time.perf_counter() - begin)
        work[kind].append(time.process_time() - busy)

    os.environ[cache.SWITCH] = "off"
    step({name: values[:BATCH] for name, values in rows.items()})
    for number in range(rounds):
        os.environ[cache.SWITCH] = "off"
        timed("off")
        os.environ[cache.SWITCH] = "on"
        os.environ["HF_SAFEFILTER_CACHE"] = f"{scratch}/round{number}"
        timed("cold")
        timed("warm")
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    return {
        "seconds": medians,
        "overhead of a cold run": _over(seconds),
        "overhead in processor time": _over(work),
        "microseconds a row, warm": medians["warm"] / count * 1e6,
    }


def _over(times: dict[str, list[float]]) -> float:
    return statistics.median(cold / off - 1 for cold, off in zip(times["cold"], times["off"], strict=True))


def table(figures: dict[str, Any]) -> str:
    """What is printed."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one:.3f}" for key, one in value.items())
        lines.append(f"{name:<46}{value:.3g}" if isinstance(value, float) else f"{name:<46}{value}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
