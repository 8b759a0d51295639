"""A fit in a process of its own, that a test may kill."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from rows_and_models import QUICK, fox_rows, safe_rows

from hf_safefilter.scores.seal import Lora, fit_seal
from hf_safefilter.scores.seal.checkpoint import Checkpoints
from hf_safefilter.storage import artifacts


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stand_still(at: str) -> None:
    """Say that the moment has come, and wait for the end."""
    tell(at)
    time.sleep(600)


def stop_after(step: int) -> None:
    save = Checkpoints.save

    def saved(self, at, *rest):
        save(self, at, *rest)
        if at == step:
            stand_still("saved")

    Checkpoints.save = saved


def stop_while_writing(step: int) -> None:
    write = artifacts.write

    def half_written(folder, kind, version, facts, fill):
        def half(scratch):
            fill(scratch)
            if facts.get("step") == step:
                path = scratch / "state.safetensors"
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                stand_still("half written")

        return write(folder, kind, version, facts, half)

    artifacts.write = half_written


def start(job: dict, **environment: str) -> subprocess.Popen:
    """Start `main(**job)` in a process that finds the modules of the tests."""
    places = (Path(__file__).parent, Path(__file__).parents[2], os.environ.get("PYTHONPATH"))
    tests = os.pathsep.join(str(place) for place in places if place)
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(job)],
        env=os.environ | {"PYTHONPATH": tests} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main(model: str, checkpoints: str | None, stop: list | None, change: dict, lora: dict | None) -> None:
    if stop is not None:
        {"after": stop_after, "while writing": stop_while_writing}[stop[0]](stop[1])
    selector = fit_seal(
        model, fox_rows(), safe_rows(), options=replace(QUICK, **change), lora=Lora(**lora) if lora else None,
        device="cpu", checkpoints=checkpoints, checkpoint_seconds=0,
    )  # fmt: skip
    logits = {str(one, "ascii"): logit.hex() for one, logit in zip(selector.row_ids, selector.logits, strict=True)}
    tell(json.dumps({"digest": selector.digest, "logits": logits, "facts": dict(selector.facts)}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
