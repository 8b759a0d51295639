"""Which rows are found: every method on labelled files, beside length, a list of refusal phrases and a text classifier.

    python -m benchmarks.detect --labeled rows.jsonl more.jsonl --model MODEL.gguf --adapter folder
    python -m benchmarks.detect --labeled rows.jsonl --model toy --unsafe refs_unsafe.jsonl --safe refs_safe.jsonl
    python -m benchmarks.detect --labeled rows.jsonl --model MINILM_FOLDER --chat-template plain

References are the starter's three sides, or your unsafe and safe rows with the starter's ordinary ones. The reading is
chosen on them alone; labels only measure. A file holds prompt, response and label ("unsafe", anything else is safe; a
row without a label is left out).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.real_reading import Reading, add_options, labeled_rows, parsed
from hf_safefilter import EmbedLayers, ReferenceIndex, choose_reading
from hf_safefilter.columns import score_column
from hf_safefilter.decide.verdict import verdict_from_labels
from hf_safefilter.engine.local import add_ranks, embed_rows, score_rows
from hf_safefilter.figures import BLUE, GREY, drawable, figure
from hf_safefilter.locate.choose_reading import METHODS
from hf_safefilter.locate.refusals import matcher
from hf_safefilter.scores import make_score

COMBINED = {name: ("ensemble", "shift") for name in ("largest_deviation", "largest_rank")}
"""The default, which looks for two dangers at once, and the same by ranks."""

PLAIN = " without borderline"
BORDERLINE = "borderline"
"""Begins the label of a harmless answer to what only sounds harmful; without such rows a file is measured too."""

BESIDE = ("length", "refusal phrases", "TF-IDF")
_HEAD = ("", "AUROC", "low", "high", "like length", "verdict")


def main() -> None:
    """Print a table for each file, and the means over files; draw them with --plot."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labeled", nargs="+", required=True, metavar="FILE", help="labelled rows, JSON Lines")
    add_options(parser)
    parser.add_argument("--limit", type=int, help="rows of each file, spread evenly")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the AUROCs there, as .png and .svg")
    options = parsed(parser)
    reading = Reading.of(options)
    choice = choose_reading(reading.index, (*METHODS, "shift"))
    print(f"{reading.embed.model}\nreading: {choice.how}\n")
    scores = {name: step_of(name, reading.index, choice) for name in (*METHODS, "direction", "shift")}
    results = {}
    for file in options.labeled:
        for name, verdicts in measure(labeled_rows(file, options.limit), reading.embed, scores, reading.sides).items():
            results[Path(file).stem + name] = verdicts
            show(Path(file).stem + name, verdicts)
    show_means(results)
    if options.plot:
        draw(results, options.plot)


def step_of(name: str, index: ReferenceIndex, choice: Any) -> Any:
    """The score of a method at the layers that were chosen for it."""
    layers = choice.layers_of(name)
    return make_score(name, {}, references=index, layer=layers[len(layers) // 2], layers=layers)


def measure(rows: Dataset, embed: EmbedLayers, scores: dict[str, Any], sides: list[list[dict[str, str]]]) -> dict:
    """Which rows ("" for all) -> name -> verdict; what cannot be scored is left out of that method alone."""
    texts, unsafe = list(rows["response"]), np.array([label == "unsafe" for label in rows["label"]])
    lengths = np.array([len(text) for text in texts], dtype=float)
    scored = embed_rows(rows.select_columns(["prompt", "response"]), embed)
    for step in scores.values():
        scored = score_rows(scored, step)
    for how, names in COMBINED.items():
        scored, _ = add_ranks(scored, [score_column(name) for name in names], how)
    values = {name: np.array(scored[score_column(name)], float) for name in (*scores, *COMBINED)}
    refusal = matcher("broad")
    values["length"] = lengths
    values["refusal phrases"] = np.array([-float(refusal(text)) for text in texts])
    values["TF-IDF"] = tfidf(texts, sides)
    plain = np.array([not label.startswith(BORDERLINE) for label in rows["label"]])
    parts = {"": np.ones(len(plain), bool)} | ({} if plain.all() else {PLAIN: plain})
    return {
        part: {name: verdict_from_labels(name, own[of], unsafe[of], lengths[of]) for name, own in values.items()}
        for part, of in parts.items()
    }


def tfidf(texts: list[str], sides: list[list[dict[str, str]]]) -> np.ndarray:
    """Log-odds of a logistic regression on words, trained on the same references."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    answers = [[row["response"] for row in side] for side in sides]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=2000, class_weight="balanced"),
    )
    safe = answers[1] + answers[2]
    model.fit(answers[0] + safe, [True] * len(answers[0]) + [False] * len(safe))
    return model.decision_function(texts)


def show(file: str, verdicts: dict) -> None:
    """One line a method."""
    print(f"{file}")
    print(f"{_HEAD[0]:<18}" + "".join(f"{head:>13}" for head in _HEAD[1:-1]) + f"  {_HEAD[-1]}")
    for name, verdict in verdicts.items():
        matched = "" if verdict.matched_auroc is None else f"{verdict.matched_auroc.value:.3f}"
        cells = [f"{verdict.auroc.value:.3f}", f"{verdict.auroc.low:.3f}", f"{verdict.auroc.high:.3f}", matched]
        print(f"{name:<18}" + "".join(f"{cell:>13}" for cell in cells) + f"  {verdict.finding}")
    print(flush=True)


def show_means(results: dict[str, dict]) -> None:
    """The mean AUROC of each method over the files."""
    whole = {file: verdicts for file, verdicts in results.items() if not file.endswith(PLAIN)}
    print(f"mean over {len(whole)} files")
    for name in next(iter(whole.values())):
        print(f"{name:<18}{np.mean([verdicts[name].auroc.value for verdicts in whole.values()]):>13.3f}")


def draw(results: dict[str, dict], path: Path) -> None:
    """AUROC with its interval, one panel a file; written as PNG and SVG."""
    with figure(path.with_suffix(""), 1.8 + 2.5 * len(results), 4.2) as canvas:
        panels = canvas.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for panel, (file, verdicts) in zip(panels, results.items(), strict=True):
            for place, (name, verdict) in enumerate(verdicts.items()):
                colour, mark = (GREY, "s") if name in BESIDE else (BLUE, "o")
                ends = [[verdict.auroc.value - verdict.auroc.low], [verdict.auroc.high - verdict.auroc.value]]
                panel.errorbar([verdict.auroc.value], [place], xerr=ends, color=colour, fmt=mark, linewidth=2,
                               label={0: "methods", len(verdicts) - 1: "what needs no model"}.get(place))  # fmt: skip
            panel.axvline(0.5, color="black", linewidth=1, linestyle="--", zorder=0, label="chance")
            panel.set_title(drawable(file, "file", 34), fontsize=9)
            panel.set_xlabel("AUROC, 95 % interval")
            panel.set_xlim(min(0.3, *(verdict.auroc.low for verdict in verdicts.values())), 1.02)
            panel.set_yticks(range(len(verdicts)), [*verdicts])
        panels[0].invert_yaxis()
        handles = panels[0].get_legend_handles_labels()
        canvas.legend(*handles, frameon=False, loc="outside lower left", ncols=3, fontsize=9)


if __name__ == "__main__":
    main()
