"""Folders that change under a running command, their times kept: it ends in a refusal, and leaves no output."""

import re
import shutil

import pytest

from hf_safefilter.toy import toy_model_path
from torture.world import ON_FOLDERS

pytestmark = pytest.mark.xdist_group("torture")

CHANGED = {
    "embed": "rowset", "shard": "rowset", "run": "rowset", "compare": "rowset", "seal": "rowset",
    "score length": "rowset", "score": "embedded", "select": "scored", "card": "decided/scored", "label": "scored",
    "effect": "scored", "model": "model",
}  # fmt: skip
"""Command -> the folder that is changed."""
REFUSALS = "was changed while it was read|was altered since it was written|are not those of the source|have changed"


@pytest.mark.parametrize("name", CHANGED)
def test_a_folder_that_changes_before_the_output_is_written(world, name):
    here = world()
    folder = here.folder / CHANGED[name]
    if name == "model":
        shutil.copytree(toy_model_path(), folder)
    steps = here.run(ON_FOLDERS[name]).steps
    for made in ("out", "store/rows", "home/datasets"):  # the same steps again
        shutil.rmtree(here.folder / made, ignore_errors=True)
    if name == "model":  # before the weights are loaded, after the digest was taken
        file, old, new = folder / "config.json", b'"rms_norm_eps"', b'"rms_norm_EPS"'
        at = next(
            number for number, step in enumerate(steps, 1) if step.startswith("os.mkdir home/datasets/.safefilter")
        )
    else:
        file, old, new = next(folder.glob("*.arrow")), b"the", b"eht"
        first = r"os.mkdir out/\.selector|open out/labels.jsonl|os.mkdir out/runs|os.mkdir out$|os.mkdir \.out\."
        at = next(number for number, step in enumerate(steps, 1) if re.match(first, step))
    other = here.folder.parent / f"{here.folder.name}-other"
    other.write_bytes(file.read_bytes().replace(old, new))
    assert other.read_bytes() != file.read_bytes()
    ended = here.run(ON_FOLDERS[name], {"at": at, "action": "alter", "files": {str(file): str(other)}})
    assert ended.code == 1, (steps[at - 1], ended.err)
    assert re.search(REFUSALS, ended.err), ended.err
    written = {path.name for path in (here.folder / "out").glob("*")} if (here.folder / "out").exists() else set()
    assert written <= {"checkpoints", "labels.jsonl", "curve.json", "curve.png", "curve.svg", "runs", "effect.json",
                       "effect.png", "effect.svg", "inputs.json"}, written  # fmt: skip
