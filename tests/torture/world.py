"""A folder in which every command has what it needs, copies of it, and commands that run in a copy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Dataset

from hf_safefilter.toy.corpus import heldout_prompts, heldout_rows, mixed_rows, reference_rows

TESTS = Path(__file__).parents[1]
_TOY = ("--model", "toy", "--layers")
_CPU = ("--device", "cpu")
COMMANDS: dict[str, tuple[str, ...]] = {
    "embed": ("embed", "rows.jsonl", *_TOY, "3", "-o", "out"),
    "by block": ("embed", "rows.jsonl", *_TOY, "3", "--stream-blocks", "always", "-o", "out"),
    "reference": ("reference", "build", "unsafe.jsonl", "safe.jsonl", *_TOY, "3", "--license", "mit", "--source", "me",
                  "-o", "out"),
    "run": ("run", "recipe.yaml", "-o", "out", "--anyway"),
    "seal": ("seal", "rows.jsonl", "trusted.jsonl", "--model", "toy", "--epochs", "1", "--batch-size", "8", *_CPU,
             "--checkpoint-seconds", "0", "-o", "out"),
    "effect": ("effect", "scored", "--by", "larf_score", "--drop-count", "4", "--harmful", "harmful.jsonl",
               "--over-refusal", "borderline.jsonl", "--steps", "1", "--batch", "4", "--seeds", "1", *_CPU, "--arms",
               "kept,dropped", "-o", "out"),
    "locate": ("locate", "toy", "--method", "scaling", "--over-refusal", "borderline.jsonl", "--scales", "0.8,1.2",
               "--max-new-tokens", "6", *_CPU, "-o", "out"),
    "merge": ("merge", "shards", "-o", "out"),
    "prune": ("cache", "prune", "--max-size", "0"),
    "push": ("push", "published", "loopback/rows", "--yes", "--anyway"),
    "label": ("label", "scored", "--from", "label", "-o", "out"),
    "import": ("review", "scored", "--by", "larf_score", "--drop-count", "4", "--import", "theirs.jsonl", "--decisions",
               "out/decisions.jsonl"),
}  # fmt: skip
"""The commands that are tortured, each with what comes out of it in `out`, in the store or on the Hub."""

ON_FOLDERS: dict[str, tuple[str, ...]] = {
    "embed": ("embed", "rowset", *_TOY, "3", "-o", "out"),
    "shard": ("embed", "rowset", *_TOY, "3", "--shard", "0", "--num-shards", "2", "-o", "out"),
    "run": ("run", "folders.yaml", "-o", "out", "--anyway"),
    "compare": ("compare", "rowset", "--model", "toy", "--methods", "larf", "--references", "refs", "--layer", "3",
                "-o", "out"),
    "seal": ("seal", "rowset", "trusted.jsonl", "--model", "toy", "--epochs", "1", "--batch-size", "8", *_CPU, "-o",
             "out"),
    "score length": ("score", "rowset", "--method", "length", "-o", "out"),
    "score": ("score", "embedded", "--method", "larf", "--references", "refs", "-o", "out"),
    "select": ("select", "scored", "--by", "larf_score", "--drop-count", "4", "-o", "out"),
    "card": ("card", "decided", "--license", "mit", "--source", "me", "--anyway", "-o", "out"),
    "label": ("label", "scored", "--from", "label", "-o", "out"),
    "effect": COMMANDS["effect"],
    "model": ("embed", "rows.jsonl", "--model", "model", "--layers", "3", "-o", "out"),
}  # fmt: skip
"""Commands that read a folder to the end, so that its change is to be found out."""

_EARLIER = {
    "embed": ("embed", "rows.jsonl", *_TOY, "1", "-o", "out"),
    "by block": ("embed", "rows.jsonl", *_TOY, "1", "-o", "out"),
    "reference": ("reference", "build", "unsafe.jsonl", "safe.jsonl", *_TOY, "1", "--license", "mit", "--source", "me",
                  "-o", "out"),
    "run": ("run", "earlier.yaml", "-o", "out", "--anyway"),
    "merge": ("merge", "earlier", "-o", "out"),
}  # fmt: skip
"""What wrote the output that lies in `out` before these commands begin."""

_PREPARED = [
    (*COMMANDS["reference"][:-1], "refs"),
    ("embed", "rows.jsonl", *_TOY, "3", "-o", "embedded"),
    ("score", "embedded", "--method", "larf", "--references", "refs", "-o", "scored"),
    *[("embed", "rows.jsonl", *_TOY, "3", "--shard", n, "--num-shards", "2", "-o", "shards") for n in "01"],
    *[("embed", "rows.jsonl", *_TOY, "1", "--shard", n, "--num-shards", "2", "-o", "earlier") for n in "01"],
    ("run", "recipe.yaml", "-o", "published", "--anyway"),
    ("select", "scored", "--by", "larf_score", "--drop-count", "4", "-o", "decided"),
]  # fmt: skip
_RECIPE = {
    "data": {"path": "rows.jsonl", "license": "mit", "source": "me"},
    "model": {"name": "toy"},
    "layer": 3,
    "references": {"unsafe": "unsafe.jsonl", "safe": "safe.jsonl", "license": "mit", "source": "me"},
    "methods": [{"name": "larf"}],
    "select": {"drop_fraction": 0.2},
}


@dataclass(frozen=True)
class Ended:
    """How a command has ended: its exit code (negative: the signal), what it printed, and its steps."""

    code: int
    out: str
    err: str
    steps: list[str]


@dataclass
class World:
    """A copy of the prepared folder, and the zygote that runs commands in it."""

    folder: Path
    zygote: Zygote
    count: int = 0

    def start(
        self,
        words: tuple[str, ...],
        blow: Mapping[str, Any] | None = None,
        *,
        limits: Mapping[str, int] | None = None,
        clock: float = 0,
    ) -> tuple[int, Path]:
        """Begin a command; gives its number, and where it writes what it says.

        Args:
            words: The command line.
            blow: What happens to it; see `Blow`.
            limits: Name of a limit of `resource` -> its value; a negative one is what is still free.
            clock: Seconds that its clock is ahead.
        """
        self.count += 1
        said = self.folder.parent / f"said-{self.folder.name}-{self.count}"
        said.mkdir()
        store = {"HF_SAFEFILTER_CACHE": str(self.folder / "store"), "HF_SAFEFILTER_ROW_CACHE": "on"}
        job = {"world": str(self.folder), "said": str(said), "words": words, "blow": blow or {}, "clock": clock,
               "environment": store, "limits": limits or {}}  # fmt: skip
        return self.zygote.ask({"start": job}), said

    def end(self, started: tuple[int, Path]) -> Ended:
        """Wait for the end of a command."""
        number, said = started
        code = self.zygote.ask({"wait": number})
        out, err, steps = ((said / name).read_text(errors="replace") if (said / name).exists() else ""
                           for name in ("out", "err", "steps"))  # fmt: skip
        return Ended(code, out, err, steps.splitlines())

    def run(self, words: tuple[str, ...], blow: Mapping[str, Any] | None = None, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.end(self.start(words, blow, **options))

    def paths(self) -> set[str]:
        """All files and folders, but for the parts of the row cache, which go by how rows were put together."""
        every = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))
        return {_lasting_name(path) for path in every if not re.fullmatch(r"store/rows/.*\.arrow", path)}


def _lasting_name(path: str) -> str:
    """The path without what `datasets` derives from the place of a file."""
    path = re.sub(r"default-[0-9a-f]{16}", "default", path)
    path = re.sub(r"store/probe/[0-9a-f]{64}", "store/probe", path)  # named by labels and when they were given
    return re.sub(r"home/datasets/_.*\.lock", "home/datasets/lock", path)


class Zygote:
    """The process that forks a child for each command."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.zygote"], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline()) != "ready\n":
            assert line, "the zygote has ended"

    def ask(self, order: Mapping[str, Any]) -> Any:
        """The answer to one order."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Worlds:
    """The prepared folder, copies of it, and what an undisturbed command makes of one."""

    def __init__(self, root: Path) -> None:
        self._root, self.zygote, self._count = root, Zygote(), 0
        self._base = World(root / "base", self.zygote)
        _write_rows(self._base.folder)
        self._undisturbed: dict[str, tuple[World, Ended]] = {}
        self._earlier: dict[str, Path] = {}
        for words in _PREPARED:
            self._must(self._base, words)
        _write_decisions(self._base.folder)
        shutil.rmtree(self._base.folder / "home")
        shutil.rmtree(self._base.folder / "store" / "rows")
        (self._base.folder / "home").mkdir()

    def _must(self, world: World, words: tuple[str, ...]) -> Ended:
        done = world.run(words)
        assert done.code in (0, 3), (words, done.code, done.err)
        return done

    def new(self, name: str) -> World:
        """A copy in which the command `name` can run; with an earlier output, if it replaces one whole."""
        self._count += 1
        world = World(self._root / f"world-{self._count}", self.zygote)
        shutil.copytree(self._base.folder, world.folder)
        if name in _EARLIER:
            if name not in self._earlier:
                maker = self.new("")
                self._must(maker, _EARLIER[name])
                self._earlier[name] = maker.folder / "out"
            shutil.copytree(self._earlier[name], world.folder / "out")
        if name == "prune":
            self._must(world, ("embed", "rows.jsonl", *_TOY, "0,1,2,3,4,5", "-o", "out"))
        return world

    def earlier(self, name: str) -> Any:
        """What the earlier output holds; None if there is none."""
        return content(self._earlier[name]) if name in self._earlier else None

    def undisturbed(self, name: str) -> tuple[World, Ended]:
        """A world in which the command has run, and how it ended."""
        if name not in self._undisturbed:
            world = self.new(name)
            self._undisturbed[name] = world, self._must(world, COMMANDS[name])
        return self._undisturbed[name]


def _write_rows(folder: Path) -> None:
    for name in (".", "home", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    unsafe, safe = reference_rows(12, 3)
    sides = {"rows": mixed_rows(24, 0.3, 3), "unsafe": unsafe, "safe": safe,
             "trusted": [*heldout_rows("harmful", 6), *heldout_rows("benign", 6)]}  # fmt: skip
    for kind in ("harmful", "borderline"):
        sides[kind] = [{"prompt": prompt} for prompt in heldout_prompts(kind, 12)]
    for name, rows in sides.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_RECIPE))
    (folder / "folders.yaml").write_text(yaml.safe_dump(_RECIPE | {"data": _RECIPE["data"] | {"path": "rowset"}}))
    Dataset.from_list(sides["rows"]).save_to_disk(folder / "rowset")
    (folder / "earlier.yaml").write_text(yaml.safe_dump(_RECIPE | {"layer": 1}))


def _write_decisions(folder: Path) -> None:
    """What two people have decided elsewhere, one of them twice on some rows."""
    ids = Dataset.load_from_disk(str(folder / "scored"))["row_id"]
    lines = [
        {
            "row_id": row_id,
            "decision": ("keep", "drop", "unsure")[(at + number) % 3],
            "who": who,
            "when": f"2020-01-{number + 1:02}T00:00:00+00:00",
        }
        for number, who in enumerate(("ada", "bo", "ada"))
        for at, row_id in enumerate(ids)
        if at % (number + 1) == 0
    ]
    (folder / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


_VOLATILE = {
    "seconds", "created", "when", "date", "datePublished", "time", "how",  # times of day, and durations
    "signature", "sha256", "_fingerprint", "probe",  # digests of what such a time, or the place of a file, is part of
}  # fmt: skip


def content(folder: Path) -> dict[str, Any]:
    """What a folder of output says: rows, values and texts, without times of day and durations."""
    return {path.relative_to(folder).as_posix(): _said(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "signed.json"}  # fmt: skip


def _said(path: Path) -> Any:
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as stream:
            return pa.ipc.open_stream(stream).read_all().to_pylist()
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".json":
        return _lasting(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_lasting(json.loads(line)) for line in path.read_text().splitlines()]
    return path.suffix if path.suffix in (".png", ".svg") else path.read_bytes()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in _VOLATILE}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value
