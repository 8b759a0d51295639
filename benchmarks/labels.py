"""What labels are worth: AUROC on rows kept aside against the number of labels, for chosen rows and for random ones.

    python -m benchmarks.labels --labeled rows.jsonl --model MODEL.gguf --adapter folder --plot labels
    python -m benchmarks.labels --labeled rows.jsonl more.jsonl --unsafe refs_unsafe.jsonl --safe refs_safe.jsonl

References and labelled files are those of `benchmarks.detect`. For each seed half of the requests are kept aside, with
all their rows; ten rows at a time are labelled in the other half, and the probe is fitted to the references and these
rows. What is measured is the ensemble with that probe, or with --score probe the probe alone. The interval of the
difference is over seeds, paired: over splits of the same rows, and not over other rows. The rule by which rows are
chosen was made on answers to XSTest prompts: on these it is no proof.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from benchmarks.real_reading import Reading, add_options, labeled_rows, parsed
from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.columns import SPANS, Layer, embedding_columns, shift_key
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.decide.verdict.rank_statistics import Ranking
from hf_safefilter.engine.local import embed_rows
from hf_safefilter.figures import BLUE, GREY, figure
from hf_safefilter.labeling.choose_rows import doubts, next_rows
from hf_safefilter.labeling.read_rows import ReadRows
from hf_safefilter.labeling.rounds import PER_ROUND, WEIGHT
from hf_safefilter.scores.probe.discriminant import Examples
from hf_safefilter.scores.probe.ensemble import noise_among
from hf_safefilter.scores.probe.fit import Boundaries, boundaries, reference_examples
from hf_safefilter.scores.probe.neighbourhood import neighbourhood
from hf_safefilter.scores.probe.noise import part_and_whole

ARMS = ("chosen", "random")
CLAIM = 50
"""The number of labels at which both arms are compared."""


@dataclass(frozen=True, slots=True)
class Near:
    """What labels do not change of an ensemble: its references, and the scores of windows by the nearest of these."""

    index: ReferenceIndex
    layers: tuple[Layer, ...]
    windows: Ragged

    @classmethod
    def of(cls, rows: ReadRows, index: ReferenceIndex, layers: tuple[Layer, ...]) -> Near:
        """That of rows read at the layers of an ensemble."""
        near = [
            neighbourhood(index.digest, layer).score(vectors.values.astype(np.float32))
            for layer, vectors in zip(layers, rows.layers, strict=True)
        ]
        return cls(index, layers, Ragged(np.mean(near, axis=0), rows.layers[0].offsets))


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows with their vectors, their labels, and the number of the request that each answers."""

    rows: ReadRows
    means: np.ndarray
    unsafe: np.ndarray
    request: np.ndarray
    near: Near | None

    def scores(self, fitted: Boundaries, places: np.ndarray) -> np.ndarray:
        """Scores of some of the rows by the ensemble with a probe that was fitted, or by that probe alone."""
        rows = self.rows.take(places)
        if self.near is None:
            return rows.scores(fitted)
        near = self.near.windows.take(places)
        windows = fitted.score(np.concatenate([vectors.values for vectors in rows.layers], axis=1))
        both = Ragged(((windows + near.values) / 2).astype(np.float32), near.offsets)
        return part_and_whole(both, rows.spans, noise_among(self.near.index, self.near.layers, fitted)).largest()[0]


def main() -> None:
    """Print a table for each file; draw the curves with --plot."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labeled", nargs="+", required=True, metavar="FILE", help="labelled rows, JSON Lines")
    add_options(parser)
    parser.add_argument("--score", choices=("ensemble", "probe"), default="ensemble")
    parser.add_argument("--limit", type=int, help="rows of each file, spread evenly")
    parser.add_argument("--seeds", type=int, default=10, help="splits of each file (10)")
    parser.add_argument("--labels", type=int, default=100, help="labels given at most (100)")
    parser.add_argument("--plot", type=Path, metavar="NAME", help="draw NAME.png and NAME.svg")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the AUROC of every seed there")
    options = parsed(parser)
    reading = Reading.of(options)
    layers, near = reading.layers, options.score == "ensemble"
    if near:
        layers = (*layers, *map(shift_key, layers))
    examples = [reference_examples(reading.index, layer) for layer in layers]
    print(f"{reading.embed.model}\n{options.score} at layers {', '.join(map(str, layers))}; {reading.index.counts}\n")
    results = {}
    for file in options.labeled:
        name = Path(file).stem
        labelled = read(labeled_rows(file, options.limit), reading.embed, layers, reading.index if near else None)
        results[name] = np.array(
            [seed_curves(labelled, examples, seed, options.labels) for seed in range(options.seeds)]
        )
        show(name, labelled, results[name])
    if options.plot:
        draw(results, options.plot)
    if options.json:
        options.json.write_text(json.dumps({name: curves.tolist() for name, curves in results.items()}) + "\n")


def read(rows: Dataset, embed: EmbedLayers, layers: tuple[Layer, ...], index: ReferenceIndex | None) -> Labelled:
    """The rows that could be read, in memory."""
    embedded = embed_rows(rows, embed)
    names = list(dict.fromkeys(column for layer in layers for column in embedding_columns(layer)))
    table = embedded.select_columns([*names, SPANS]).with_format("arrow")[:]
    batch = Batch(table)
    whole = ReadRows.of(batch, layers, batch.vectors(names[0]).values.shape[1])
    kept = np.flatnonzero(whole.layers[0].counts)
    whole = whole.take(kept)
    unsafe = np.array([label == "unsafe" for label in rows["label"]])[kept]
    if unsafe.all() or not unsafe.any():
        raise SystemExit("the labelled rows are all of one kind: name a file with unsafe and other rows")
    request = np.unique(np.array(rows["prompt"], dtype=object)[kept].astype(str), return_inverse=True)[1]
    return Labelled(whole, whole.means(), unsafe, request, None if index is None else Near.of(whole, index, layers))


def seed_curves(labelled: Labelled, references: list[Examples], seed: int, most: int) -> list[list[float]]:
    """AUROC on the rows kept aside after 0, 10, ... labels, for each arm."""
    draw = np.random.default_rng(seed)
    aside = draw.permutation(labelled.request.max() + 1)[::2]
    held_out = np.isin(labelled.request, aside)
    pool = np.flatnonzero(~held_out)
    at_random = draw.permutation(len(pool))
    test = np.flatnonzero(held_out)
    return [_arm(arm, labelled, references, pool, at_random, test, most) for arm in ARMS]


def _arm(
    arm: str,
    labelled: Labelled,
    references: list[Examples],
    pool: np.ndarray,
    at_random: np.ndarray,
    test: np.ndarray,
    most: int,
) -> list[float]:
    rows, truth = labelled.rows.take(pool), labelled.unsafe[pool].astype(float)
    asked, curve = np.zeros(len(pool), bool), []
    for given in range(0, most + 1, PER_ROUND):
        sets = references
        if given:
            own = rows.take(np.flatnonzero(asked)).examples(truth[asked])
            sets = [mine.joined(more, WEIGHT) for mine, more in zip(references, own, strict=True)]
        fitted = boundaries(sets)
        curve.append(Ranking(labelled.scores(fitted, test)).auroc(labelled.unsafe[test]))
        if arm == "random":
            asked[at_random[given : given + PER_ROUND]] = True
        else:
            doubt = doubts(rows.scores(fitted), np.where(asked, truth, np.nan))
            asked[next_rows(doubt, labelled.means[pool], asked, PER_ROUND)] = True
    return curve


def difference(curves: np.ndarray, step: int) -> tuple[float, float]:
    """Mean of chosen minus random after `step` rounds, and half of its 95 % interval (t, paired over seeds)."""
    from scipy.stats import t

    gaps = curves[:, 0, step] - curves[:, 1, step]
    if len(gaps) < 2:
        return float(gaps.mean()), float("nan")
    return float(gaps.mean()), float(t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))


def worth(curves: np.ndarray, step: int) -> str:
    """How many random labels give the mean AUROC that the chosen ones give after `step` rounds."""
    chosen, random = curves.mean(axis=0)
    reached = np.flatnonzero(random >= chosen[step])
    if not len(reached):
        return f"over {PER_ROUND * (random.size - 1)}"
    if (last := int(reached[0])) == 0:
        return "0"
    share = (chosen[step] - random[last - 1]) / (random[last] - random[last - 1])
    return f"{PER_ROUND * (last - 1 + share):.0f}"


def show(name: str, labelled: Labelled, curves: np.ndarray) -> None:
    """One line for each number of labels."""
    print(f"{name}: {len(labelled.unsafe)} rows, {labelled.unsafe.sum()} unsafe, {len(curves)} seeds")
    print(f"{'labels':>7}{'chosen':>9}{'random':>9}{'difference':>12}{'low':>9}{'high':>9}{'seeds won':>11}")
    for step in range(curves.shape[2]):
        mean, half = difference(curves, step)
        chosen, random = curves[:, :, step].mean(axis=0)
        won = int((curves[:, 0, step] > curves[:, 1, step]).sum())
        ends = f"{mean - half:>+9.3f}{mean + half:>+9.3f}"
        print(f"{PER_ROUND * step:>7}{chosen:>9.3f}{random:>9.3f}{mean:>+12.3f}{ends}{won:>11}")
    if (step := CLAIM // PER_ROUND) < curves.shape[2]:
        print(f"{CLAIM} chosen labels are worth {worth(curves, step)} random ones\n", flush=True)


def draw(results: dict[str, np.ndarray], path: Path) -> None:
    """Mean over seeds, and between which values nine of ten seeds lie; one panel a file."""
    with figure(path, 4.6 * len(results), 3.8) as canvas:
        panels = canvas.subplots(1, len(results), squeeze=False)[0]
        for axes, (name, curves) in zip(panels, results.items(), strict=True):
            labels = PER_ROUND * np.arange(curves.shape[2])
            for arm, (label, colour, line) in enumerate(zip(ARMS, (BLUE, GREY), ("o-", "s--"), strict=True)):
                low, high = np.quantile(curves[:, arm], [0.05, 0.95], axis=0)
                axes.fill_between(labels, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(
                    labels,
                    curves[:, arm].mean(axis=0),
                    line,
                    color=colour,
                    markersize=4,
                    label=f"{label} rows, mean of {len(curves)} seeds; band: nine of ten",
                )
            axes.set_title(name, loc="left")
            axes.set_xlabel("rows labelled")
        panels[0].set_ylabel("AUROC on rows kept aside")
        handles = panels[0].get_legend_handles_labels()
        canvas.legend(*handles, frameon=False, loc="outside lower left", fontsize=9)


if __name__ == "__main__":
    main()
