"""measure_effect: the same tuning on every arm, the same questions before and after, and nothing done twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.effect.arms import ARMS, Arm, arms_of, choose_rows, schedule
from hf_safefilter.effect.ledger import Ledger, Run, digest_of
from hf_safefilter.effect.material import Material, read_material, tokens_of
from hf_safefilter.effect.measures import Measured, mean_loss, replies_to
from hf_safefilter.effect.plot import draw
from hf_safefilter.effect.questions import Questions
from hf_safefilter.effect.report import EffectReport
from hf_safefilter.effect.tuning import Tuning, require_trainer, tune
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.refusals import Judge, RefusalMatcher, matcher

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.select import IsSafe

logger = logging.getLogger(__name__)

ALGORITHM = 1
"""Raised whenever the code gives other values: finished runs of another version are not taken over."""

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
BEFORE = "before"


def measure_effect(
    scored: Dataset | DatasetDict,
    is_safe: IsSafe,
    model: str,
    questions: Questions,
    output: str | Path,
    *,
    tuning: Tuning | None = None,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    freeze: tuple[int, int] | None = None,
    known_prompts: Iterable[str] = (),
    hold_out: int = 200,
    ask_at_most: int | None = None,
    judge: str | RefusalMatcher | Judge | Callable[[str], bool] = "broad",
    max_new_tokens: int = 32,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    chat_template: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_run: Callable[[Run, int, int], None] | None = None,
) -> EffectReport:
    """Tune `model` on each arm with each seed, ask it before and after, and say what the filter does to it.

    Every finished run is written to `output` at once; a call with the same inputs takes it from there. A run depends
    on the model, the rows of its arm, the tuning, the seed, the questions and the versions of what tunes: where one of
    them changes, the runs that depend on it are done anew, and the log says what changed.

    Args:
        scored: rows with the score column; all splits together.
        is_safe: the decision.
        model: Hub id, local folder, or "toy".
        questions: what is asked. Without benign rows, up to `hold_out` kept rows, drawn at random, take their place
            and are left out of every arm.
        output: folder for ``runs/``, ``effect.json`` and the plot; an earlier study there goes on.
        tuning: the same for all arms.
        arms: some of `ARMS`, or these with "+frozen".
        seeds: of row draws, row order, adapters and dropout; the same for all arms.
        freeze: first and last block to freeze in the frozen arms, ``all+frozen`` and ``kept+frozen`` if none is named.
        known_prompts: prompts that stand among the references: they are not asked.
        hold_out: see `questions`.
        ask_at_most: so many questions of each kind, of those that no model has seen; all if None.
        judge: what a refusal is, as `locate.refusals.matcher` takes it.
        max_new_tokens: of each reply.
        revision: of the model.
        dtype: the model's number format; full tuning is done in float32.
        device: "cpu" or "cuda"; the best there is if None.
        chat_template: for a model that has none.
        columns: where prompt and response stand, for rows of no known shape.
        on_run: called after each run with it, its number and how many there are.

    Raises:
        MissingError: the extra `train` is not installed, or the score column is missing.
        OptionError: arms, seeds or options that make no sense; `output` holds something else.
        DataError: an empty arm, no questions left, or a model that refuses nothing before it is tuned.
        ModelError: NaN losses or too little memory; finished runs are kept.
    """
    from hf_safefilter.model import load

    require_trainer()
    tuning = tuning or Tuning()
    chosen = arms_of(arms, freeze)
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError(f"seeds {list(seeds)}: none, or one twice", fix="use e.g. seeds=(0, 1, 2)")
    if freeze is not None:
        _require_blocks(model, revision, freeze, tuning)
    ledger = Ledger(Path(output))
    if tuning.method == "full" and dtype == "auto":
        dtype = "float32"
    place = load.pick_device(device, None)
    key = _key(model, revision, dtype, place)
    rows = read_material(scored, is_safe, key, tuning.max_length, chat_template, columns)
    total = len(rows.kept) + rows.unreadable
    if not questions.benign:
        rows, benign = rows.hold_out(hold_out)
        questions = replace(questions, benign=benign)
    asked, left_out = questions.without([*rows.prompts, *known_prompts], rows.ids)
    asked = _readable(asked, key, tuning.max_length, chat_template)
    if ask_at_most is not None:
        asked = asked.first(ask_at_most)
    asked.required(left_out)
    judged = matcher(judge)
    places = {
        (arm.name, seed): choose_rows(arm.rows, rows.kept, rows.lengths, seed) for arm in chosen for seed in seeds
    }
    inputs = _inputs(key, is_safe, rows, tuning, seeds, chosen, freeze, asked, judged, max_new_tokens, chat_template)
    ledger.open(inputs)
    work = _Work(key, place, rows, tuning, asked, judged, max_new_tokens, chat_template, ledger, inputs)
    before = work.before()
    if not before.measured.harmful.refused:
        raise DataError(
            f"{model} refuses none of {before.measured.harmful.asked} harmful prompts before it is tuned: "
            "there is nothing to lose",
            found=f"{before.measured.harmful.answered} answered, {before.measured.harmful.degenerate} no text",
            fix="use an aligned (instruction-tuned) model, prompts that it refuses, or another --judge",
        )
    runs: list[Run] = []
    for seed in seeds:  # seed by seed, so that a study cut short has compared all arms
        for arm in chosen:
            runs.append(work.run(arm, seed, places[arm.name, seed], freeze))
            if on_run is not None:
                on_run(runs[-1], len(runs), len(seeds) * len(chosen))
    order = {arm.name: at for at, arm in enumerate(chosen)}
    runs.sort(key=lambda run: (order[run.arm], run.seed))
    counts = {"rows": total, "kept": int(rows.kept.sum()), "dropped": int((~rows.kept).sum())}
    counts |= {"unreadable": rows.unreadable, "held_out": total - len(rows.kept) - rows.unreadable}
    counts |= asked.counts() | {f"{kind}_left_out": number for kind, number in left_out.items()}
    report = EffectReport(inputs, counts, before, tuple(runs))
    draw(report, Path(output) / "effect")
    report.write(Path(output))
    return report


@dataclass(frozen=True, slots=True)
class _Work:
    """What every run of a study shares."""

    key: ModelKey
    device: Any
    rows: Material
    tuning: Tuning
    asked: Questions
    judge: Any
    max_new_tokens: int
    chat_template: str | None
    ledger: Ledger
    inputs: Mapping[str, Any]

    def before(self) -> Run:
        """The model as it came."""
        from hf_safefilter.model import load

        digest = self._digest()
        found = self.ledger.find(BEFORE, 0, digest)
        if found is None:
            begin = time.monotonic()
            measured = self._measure(load.fresh_causal_lm(self.key, self.device))
            found = Run(BEFORE, 0, 0, 0, 0.0, (), measured, time.monotonic() - begin)
            self.ledger.write(found, digest)
        return found

    def run(self, arm: Arm, seed: int, rows: np.ndarray, freeze: tuple[int, int] | None) -> Run:
        """One arm with one seed: from the ledger, or tuned now."""
        from hf_safefilter.model import load

        blocks = freeze if arm.frozen else None
        ids = [self.rows.ids[row] for row in rows]
        digest = self._digest(arm=arm.rows, seed=seed, rows=ids, tuning=asdict(self.tuning), frozen=blocks)
        found = self.ledger.find(arm.name, seed, digest)
        if found is not None:
            logger.info("%s, seed %d: done before", arm.name, seed)
            return found
        begin = time.monotonic()
        logger.info("%s, seed %d: tuning on %d rows", arm.name, seed, len(rows))
        order = schedule(rows, self.tuning.steps * self.tuning.batch, seed)
        model, losses = tune(
            load.fresh_causal_lm(self.key, self.device),
            load.tokenizer(self.key),
            self.rows.tokens,
            order,
            self.tuning,
            seed=seed,
            frozen=blocks,
            title=f"Tune on {arm.name}, seed {seed}",
        )
        run = Run(
            arm.name,
            seed,
            len(rows),
            len(losses),
            float(self.rows.lengths[rows].mean()),
            (losses[0], losses[-1]),
            self._measure(model),
            time.monotonic() - begin,
        )
        self.ledger.write(run, digest)
        return run

    def _measure(self, model: Any) -> Measured:
        from hf_safefilter.model import load

        tokenizer = load.tokenizer(self.key)
        asking = {"max_new_tokens": self.max_new_tokens, "chat_template": self.chat_template}
        benign = tokens_of(self.asked.benign, self.key, self.tuning.max_length, self.chat_template)
        return Measured(
            harmful=replies_to(model, tokenizer, self.asked.harmful, self.judge, **asking),
            over_refusal=replies_to(model, tokenizer, self.asked.over_refusal, self.judge, **asking),
            benign_loss=mean_loss(model, benign),
        )

    def _digest(self, **own: Any) -> str:
        shared = ("algorithm", "model", "revision", "dtype", "template", "questions", "judge", "replies", "versions")
        return digest_of({name: self.inputs[name] for name in shared} | own)


def _readable(asked: Questions, key: ModelKey, max_length: int | None, chat_template: str | None) -> Questions:
    """Without the benign rows that the model cannot read: a loss over none would be found out after all the tuning.

    Raises:
        DataError: it can read none of those that there are.
    """
    tokens = tokens_of(asked.benign, key, max_length, chat_template)
    benign = tuple(one for one, read in zip(asked.benign, tokens, strict=True) if not read.reason)
    if asked.benign and not benign:
        raise DataError(
            f"none of the {len(tokens)} benign rows can be read",
            found=", ".join(sorted({one.reason for one in tokens})),
            fix="raise --max-length, or bring others: --benign FILE",
        )
    return replace(asked, benign=benign)


def _key(model: str, revision: str | None, dtype: str, device: Any) -> ModelKey:
    from hf_safefilter.model import load
    from hf_safefilter.model.source import ModelKey

    pinned = load.resolve_revision(model, revision)
    config = load.model_config(ModelKey(str(model), pinned, "float32")).get_text_config()
    return ModelKey(str(model), pinned, load.pick_dtype(dtype, device, getattr(config, "dtype", None)))


def _require_blocks(model: str, revision: str | None, freeze: tuple[int, int], tuning: Tuning) -> None:
    """Raise for a range of blocks that cannot be frozen, before anything is tuned."""
    from hf_safefilter.freeze import freezing_plan, lora_settings

    if tuning.method == "full":
        freezing_plan(model, *freeze, revision=revision)
    else:
        lora_settings(model, *freeze, revision=revision)


def _inputs(
    key: ModelKey,
    is_safe: IsSafe,
    rows: Material,
    tuning: Tuning,
    seeds: Sequence[int],
    arms: Sequence[Arm],
    freeze: tuple[int, int] | None,
    asked: Questions,
    judge: Any,
    max_new_tokens: int,
    chat_template: str | None,
) -> dict[str, Any]:
    """Everything that decides a figure, as plain values: what runs are known by, and what the report states."""
    from hf_safefilter.model import load
    from hf_safefilter.model.template import template_digest

    return {
        "algorithm": ALGORITHM,
        "model": key.model,
        "revision": key.revision,
        "dtype": key.dtype,
        "template": template_digest(load.tokenizer(key), chat_template),
        "column": is_safe.column,
        "threshold_hex": float(is_safe.threshold).hex(),
        "rule": is_safe.rule,
        "rows": digest_of([rows.ids, rows.kept.tolist()]),
        "tuning": asdict(tuning),
        "arms": [arm.name for arm in arms],
        "seeds": list(seeds),
        "freeze": freeze,
        "questions": {
            "source": asked.source,
            "harmful": digest_of(asked.harmful),
            "over_refusal": digest_of(asked.over_refusal),
            "benign": digest_of([one.messages for one in asked.benign]),
        },
        "judge": judge.record() if hasattr(judge, "record") else type(judge).__qualname__,
        "replies": {"max_new_tokens": max_new_tokens},
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
