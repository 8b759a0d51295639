"""How good a plan is: the time it says for a data set, before and after calibrating, against the time it takes.

The calibration and the whole run are processes of their own, one after the other, in pairs; each pair gives one ratio.
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

from benchmarks.embed import make_model, pick_rows

EXAMPLE = """example:
  python -m benchmarks.plan
  python -m benchmarks.plan --rows my_rows.jsonl --limit 500 --rounds 3 --threads 4
"""


def main() -> None:
    """Make the model, run the pairs, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", type=Path, metavar="FILE", help="JSON Lines; default: the starter rows")
    parser.add_argument("--limit", type=int, default=400, help="rows embedded, drawn evenly over the files (400)")
    parser.add_argument("--layer", type=int, default=6, help="layer read, of 12 (6)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs (3)")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="CPU threads (half)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--worker", choices=["plan", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps({"plan": said, "run": taken}[options.worker](options.folder, options.layer)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = pick_rows(options.rows, options.limit)
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        make_model(folder, rows)
        pairs = [(ask("plan", options, folder), ask("run", options, folder)) for _ in range(options.rounds)]
    figures = summary(pairs, len(rows))
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def ask(worker: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One process."""
    command = [sys.executable, "-m", "benchmarks.plan", "--worker", worker, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_SAFEFILTER_ROW_CACHE": "off", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [*command, "--layer", str(options.layer)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def read_rows(folder: Path) -> Any:
    """The rows as a data set."""
    from datasets import Dataset

    return Dataset.from_list(json.loads((folder / "rows.json").read_text(encoding="utf-8")))


def said(folder: Path, layer: int) -> dict[str, float]:
    """Seconds by the plan, with the assumed and with the measured share of the peak; and what it took to say so."""
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.model.reading_options import ReadingOptions
    from hf_safefilter.plan import calibrate, count_work, make_plan, sample_lengths
    from hf_safefilter.plan.devices import measured, this_cpu
    from hf_safefilter.plan.work import read_config

    rows, work = read_rows(folder), count_work(read_config(str(folder)), [layer])
    lengths = sample_lengths(rows, ReadingOptions(str(folder)))
    assumed = make_plan(work, lengths, [(1, this_cpu())]).devices[0]
    step = EmbedLayers(str(folder), layers=[layer], device="cpu")
    begin = time.perf_counter()
    found = calibrate(step, rows, work)
    spent = time.perf_counter() - begin
    device = measured(this_cpu(), step.dtype, found.speed)
    sure = make_plan(work, lengths, [(1, device)], measured=True).devices[0]
    return {"assumed": assumed.seconds, "calibrated": sure.seconds, "spent": spent, "sample": found.rows}


def taken(folder: Path, layer: int) -> dict[str, float]:
    """Seconds that `Dataset.map` takes for all rows, once the model is loaded."""
    from datasets import disable_progress_bars

    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.engine.local import embed_rows

    disable_progress_bars()
    rows, step = read_rows(folder), EmbedLayers(str(folder), layers=[layer], device="cpu")
    step(rows[:16])
    begin = time.perf_counter()
    embed_rows(rows, step)
    return {"seconds": time.perf_counter() - begin}


def summary(pairs: list[tuple[dict[str, float], dict[str, float]]], rows: int) -> dict[str, Any]:
    """Said over taken, pair by pair, and medians."""
    figures: dict[str, Any] = {"rows": rows, "sample": pairs[0][0]["sample"]}
    figures["seconds"] = [run["seconds"] for _, run in pairs]
    figures["seconds to calibrate"] = [plan["spent"] for plan, _ in pairs]
    for kind in ("assumed", "calibrated"):
        figures[kind] = [plan[kind] / run["seconds"] for plan, run in pairs]
        figures[f"{kind}, median"] = statistics.median(figures[kind])
    return figures


def table(figures: dict[str, Any]) -> str:
    """What is printed."""

    def shown(value: Any) -> str:
        return ", ".join(f"{one:.3g}" for one in value) if isinstance(value, list) else f"{value:.3g}"

    names = {"assumed": "said / taken, share of peak assumed", "calibrated": "said / taken, calibrated"}
    return "\n".join(f"{names.get(name, name):<38}{shown(value)}" for name, value in figures.items())


if __name__ == "__main__":
    main()
