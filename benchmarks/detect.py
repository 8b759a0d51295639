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
from hf_safefilter.locate.choose_reading import METHODS
from hf_safefilter.locate.refusals import matcher
from hf_safefilter.scores import make_score

COMBINED = {"largest_rank": ("probe", "shift"), "rank_average": ("probe", "nearest", "shift")}
"""The default, which looks for two dangers at once, and the average of what looks for harm."""

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
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the AUROCs there")
    options = parsed(parser)
    reading = Reading.of(options)
    choice = choose_reading(reading.index, (*METHODS, "shift"))
    print(f"{reading.embed.model}\nreading: {choice.how}\n")
    scores = {name: step_of(name, reading.index, choice) for name in (*METHODS, "direction", "shift")}
    results = {}
    for file in options.labeled:
        results[Path(file).stem] = measure(labeled_rows(file, options.limit), reading.embed, scores, reading.sides)
        show(Path(file).stem, results[Path(file).stem])
    show_means(results)
    if options.plot:
        draw(results, options.plot)


def step_of(name: str, index: ReferenceIndex, choice: Any) -> Any:
    """The score of a method at the layers that were chosen for it."""
    layers = choice.layers_of(name)
    return make_score(name, {}, references=index, layer=layers[len(layers) // 2], layers=layers)


def measure(rows: Dataset, embed: EmbedLayers, scores: dict[str, Any], sides: list[list[dict[str, str]]]) -> dict:
    """Name -> verdict; what cannot be scored is left out of that method alone."""
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
    return {name: verdict_from_labels(name, own, unsafe, lengths) for name, own in values.items()}


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
    print(f"mean over {len(results)} files")
    for name in next(iter(results.values())):
        print(f"{name:<18}{np.mean([verdicts[name].auroc.value for verdicts in results.values()]):>13.3f}")


def draw(results: dict[str, dict], path: Path) -> None:
    """AUROC with its interval, one panel a file."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(4 * len(results), 3.6), sharey=True, squeeze=False)
    for panel, (file, verdicts) in zip(panels[0], results.items(), strict=True):
        for place, (name, verdict) in enumerate(reversed(verdicts.items())):
            colour = "0.6" if name in BESIDE else "C0"
            panel.plot([verdict.auroc.low, verdict.auroc.high], [place, place], color=colour, lw=2)
            panel.plot(verdict.auroc.value, place, "o", color=colour)
        panel.axvline(0.5, color="0.8", lw=1, zorder=0)
        panel.set(title=file, xlabel="AUROC", xlim=(0.2, 1.02))
        panel.set_yticks(range(len(verdicts)), [*reversed(verdicts)])
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
