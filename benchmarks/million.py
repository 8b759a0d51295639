"""A whole `run` on many short rows, killed half way and begun again: time of stages, memory of processes, disk.

The rows are made up: distinct questions with short answers. The model is the toy, so what is measured is everything
around a model: reading, tokenising, caching, scoring, deciding and writing. The first run is killed with SIGKILL when
half of the rows are read; the second one goes on. Every row of the source must be kept or dropped, once. Memory is what
a process holds beside files that it maps (RssAnon), sampled; disk is what the store, the caches and the output hold at
the end. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  python -m benchmarks.million                       # a million rows, in this process
  python -m benchmarks.million --engine ray          # the same by Ray on this machine
  python -m benchmarks.million --rows 20000 --json million.json
"""
SAMPLED = 0.5
_BAR = re.compile(
    r"(?:^|[\r\n])([A-Za-z][\w ()/]*?):? +\d+%\|[^|]*\| *(\d+)/\d+"  # Embed:  12%|##   | 1200/10000
    r"|(?:^|[\r\n])([A-Za-z][\w ]*): (\d+) \w+ \["  # Generating train split: 1200 examples [
)

NOUNS = "garden engine violin bridge harbour recipe letter window river planet kitchen forest camera market".split()
VERBS = "paint repair describe measure compare plant carry draw clean build explain write fold sort count".split()
PLACES = "Lisbon Oslo Quito Hanoi Accra Perth Kyoto Lima Malmo Tunis Dakar Bergen Porto Sofia Riga".split()


def main() -> None:
    """Make the rows, run, kill, run again, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.million",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows (1000000)")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="where rows are read (local)")
    parser.add_argument("--actors", type=int, default=2, help="of Ray (2)")
    parser.add_argument("--kill-at", type=float, default=0.5, help="share of the rows read before the kill (.5)")
    parser.add_argument("--kill-after", type=float, help="seconds before the kill instead, as Ray shows no rows")
    parser.add_argument("--scratch", type=Path, help="folder for all of it; a temporary one if left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        figures = measure(Path(folder), options)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as plain values."""
    count, engine, kill_at = options.rows, options.engine, options.kill_at
    started = time.monotonic()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows_of(count))
    (folder / "recipe.yaml").write_text(
        "data: {path: rows.jsonl, license: cc0-1.0, source: made up, generator_model: people}\n"
        "model: toy\nreferences: {path: starter}\nlayer: 4\nmethods: [probe, shift]\nselect: {drop_fraction: 0.05}\n"
    )
    figures: dict[str, Any] = {"rows": count, "engine": engine, "made in": time.monotonic() - started}
    figures["source"] = (folder / "rows.jsonl").stat().st_size
    words = ["run", "recipe.yaml", "--output", "out", "--anyway"]
    words += ["--engine", "ray", "--actors", str(options.actors)] if engine == "ray" else []
    if kill_at or options.kill_after:
        rows, after = (None, options.kill_after) if options.kill_after else (kill_at * count, None)
        killed = Watched.run(folder, words, rows, after)
        figures["killed"] = killed.figures()
    whole = Watched.run(folder, words)
    figures["whole"] = whole.figures()
    if whole.code:
        raise SystemExit(f"the run failed with {whole.code}:\n{whole.said[-3000:]}")
    figures["disk"] = {name: size_of(folder / name) for name in ("out", "store", "home")}
    figures["checked"] = checked(folder, count)
    return figures


def rows_of(count: int) -> Iterator[dict[str, str]]:
    """Distinct short rows."""
    draw = random.Random(0)
    for number in range(count):
        verb, noun, place = draw.choice(VERBS), draw.choice(NOUNS), draw.choice(PLACES)
        answer = " ".join(draw.choice(NOUNS if at % 2 else VERBS) for at in range(draw.randint(3, 24)))
        yield {"prompt": f"How do I {verb} a {noun} in {place}? ({number})", "response": f"To {verb} it, {answer}."}


@dataclass
class Watched:
    """A run that was watched.

    Attributes:
        code: Its exit code; -9 if it was killed.
        seconds: How long it took.
        said: What it has written to stderr.
        stages: Stage -> when its bar was first and last seen, and how far it came.
        most: Command line, shortened -> the most memory that such a process held, and how many there were at once.
        together: The most memory of all its processes at one moment.
    """

    code: int = 0
    seconds: float = 0.0
    said: str = ""
    stages: dict[str, list[float]] = field(default_factory=dict)
    most: dict[str, list[int]] = field(default_factory=dict)
    together: int = 0

    @classmethod
    def run(
        cls, folder: Path, words: list[str], kill_at: float | None = None, kill_after: float | None = None
    ) -> Watched:
        """Run the command line, and kill it when so many rows are read, or after so many seconds."""
        found = cls()
        env = os.environ | {
            "HF_HUB_OFFLINE": "1", "HF_SAFEFILTER_CACHE": str(folder / "store"), "HF_HOME": str(folder / "home"),
            "RAY_DEDUP_LOGS": "0", "TMPDIR": str(folder),
        }  # fmt: skip
        code = "from hf_safefilter.cli import main; main()"
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        stop = threading.Event()
        sampler = threading.Thread(target=found._sample, args=(process.pid, stop))
        sampler.start()
        assert process.stderr is not None
        timer = threading.Timer(kill_after or 0, kill_all, [process.pid])
        if kill_after is not None:
            timer.start()
        while part := os.read(process.stderr.fileno(), 65536):
            found._read(part.decode(errors="replace"), time.monotonic() - started)
            if kill_at is not None and found.stages.get("Embed", [0, 0, 0])[2] >= kill_at:
                kill_all(process.pid)
                break
        found.code = process.wait()
        timer.cancel()
        found.seconds = time.monotonic() - started
        stop.set()
        sampler.join()
        return found

    def figures(self) -> dict[str, Any]:
        """Plain values."""
        stages = {name: {"from": first, "to": last, "rows": rows} for name, (first, last, rows) in self.stages.items()}
        return {"code": self.code, "seconds": self.seconds, "stages": stages, "processes": self.most,
                "together": self.together, "resumed": re.findall(r"resumed: .*", self.said)}  # fmt: skip

    def _read(self, text: str, now: float) -> None:
        self.said += text
        for match in _BAR.finditer(text):
            name = (match[1] or match[3]).partition(" (")[0]
            rows = float(match[2] or match[4] or 0)
            first, _, most = self.stages.get(name, [now, now, 0.0])
            self.stages[name] = [first, now, max(most, rows)]

    def _sample(self, root: int, stop: threading.Event) -> None:
        while not stop.wait(SAMPLED):
            total, seen = 0, dict[str, int]()
            for pid, name in family(root):
                held = anonymous(pid)
                total += held
                seen[name] = seen.get(name, 0) + 1
                most = self.most.setdefault(name, [0, 0])
                most[0], most[1] = max(most[0], held), max(most[1], seen[name])
            self.together = max(self.together, total)


def kill_all(root: int) -> None:
    """Kill a process and all below it: those of Ray would outlive it."""
    for pid in (root, *[pid for pid, _ in family(root)]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def family(root: int) -> Iterator[tuple[int, str]]:
    """Process id and name of a process and all below it, and of those that have its session, such as Ray's."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            fields = stat.rpartition(")")[2].split()
            parents[int(entry.name)] = (int(fields[1]), int(fields[3]))
            names[int(entry.name)] = short(words)
    for pid, (_, session) in parents.items():
        above, mine = pid, session == root
        while above in parents and not mine and above > 1:
            mine = above == root
            above = parents[above][0]
        if mine:
            yield pid, names[pid]


def short(words: str) -> str:
    """What a process is, from its command line."""
    for sign, name in (("ray::", "Ray actor or task"), ("raylet", "Ray, its own"), ("gcs_server", "Ray, its own"),
                       ("/ray/", "Ray, its own"), ("spawn_main", "worker")):  # fmt: skip
        if sign in words:
            return name
    return "hf-safefilter" if "hf_safefilter" in words else "other"


def anonymous(pid: int) -> int:
    """Bytes of a process that are not of a file."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def checked(folder: Path, count: int) -> dict[str, int]:
    """Rows kept and dropped; every row of the source must be in one of them, once.

    Raises:
        SystemExit: They are not.
    """
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    kept = ds.dataset(folder / "out" / "data").to_table(columns=["prompt"])["prompt"].to_pylist()
    dropped = pq.read_table(folder / "out" / "dropped.parquet").num_rows
    numbers = {int(prompt.rpartition("(")[2].rstrip(")")) for prompt in kept}
    if len(numbers) != len(kept) or len(kept) + dropped != count or not numbers <= set(range(count)):
        raise SystemExit(f"{len(kept)} kept ({len(numbers)} distinct) and {dropped} dropped of {count} rows")
    return {"kept": len(kept), "dropped": dropped}


def table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{figures['rows']:,} rows, {figures['source'] / 1e6:.0f} MB of JSON lines, engine {figures['engine']}"]
    for name in ("killed", "whole"):
        if name not in figures:
            continue
        run = figures[name]
        lines.append(f"{name}: {run['seconds']:.0f} s, exit code {run['code']} {'; '.join(run['resumed'])}")
        for stage, facts in run["stages"].items():
            when = f"{facts['to'] - facts['from']:8.1f} s, from {facts['from']:.0f} s on"
            lines.append(f"  {stage:24} {when}, to row {facts['rows']:,.0f}")
        for process, (most, how_many) in run["processes"].items():
            lines.append(f"  {process:24} {most / 1e6:8.0f} MB at most, {how_many} at once")
        lines.append(f"  {'all together':24} {run['together'] / 1e6:8.0f} MB")
    lines.append("disk: " + ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in figures["disk"].items()))
    lines.append(f"kept {figures['checked']['kept']:,}, dropped {figures['checked']['dropped']:,}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
