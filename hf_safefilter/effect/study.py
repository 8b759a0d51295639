"""measure_effect: the same tuning on every arm, the same questions before and after, and nothing done twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.effect.arms import ARMS, Arm, arms_of, choose_rows
from hf_safefilter.effect.effect_plot import draw
from hf_safefilter.effect.effect_report import EffectReport
from hf_safefilter.effect.ledger import Ledger, Run, digest_of
from hf_safefilter.effect.material import Material, read_material, tokens_of
from hf_safefilter.effect.questions import Questions
from hf_safefilter.effect.runs import Runs
from hf_safefilter.effect.tuning import Tuning, require_trainer
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.refusals import Judge, RefusalMatcher, matcher
from hf_safefilter.model.reading_options import ModelOptions

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.model.source import ModelKey

ALGORITHM = 1
"""Raised whenever the code gives other values: finished runs of another version are not taken over."""

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True, slots=True)
class Study:
    """What is tuned, what is asked, and how often: everything about a study but the rows and the decision.

    Args:
        model: Hub id, local folder, "toy", or `ModelOptions` that say how it is loaded (full tuning is done in
            float32).
        questions: what is asked. Without benign rows, up to `hold_out` kept rows, drawn at random, take their place
            and are left out of every arm.
        tuning: the same for all arms.
        arms: some of `ARMS`, or these with "+frozen".
        seeds: of row draws, row order, adapters and dropout; the same for all arms.
        freeze: first and last block to freeze in the frozen arms, ``all+frozen`` and ``kept+frozen`` if none is named.
        known_prompts: prompts that stand among the references: they are not asked.
        hold_out: see `questions`.
        ask_at_most: so many questions of each kind, of those that no model has seen; all if None.
        judge: what a refusal is, as `locate.refusals.matcher` takes it.
        max_new_tokens: of each reply.
        columns: where prompt and response stand, for rows of no known shape.

    Raises:
        OptionError: arms or seeds that make no sense.
    """

    model: ModelOptions | str
    questions: Questions
    _: KW_ONLY
    tuning: Tuning = field(default_factory=Tuning)
    arms: Sequence[str] = ARMS
    seeds: Sequence[int] = (0, 1, 2)
    freeze: tuple[int, int] | None = None
    known_prompts: Sequence[str] = ()
    hold_out: int = 200
    ask_at_most: int | None = None
    judge: str | RefusalMatcher | Judge | Callable[[str], bool] = "broad"
    max_new_tokens: int = 32
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelOptions):
            object.__setattr__(self, "model", ModelOptions(str(self.model)))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise OptionError(f"seeds {list(self.seeds)}: none, or one twice", fix="use e.g. `seeds=(0, 1, 2)`")
        self.chosen_arms()

    def chosen_arms(self) -> list[Arm]:
        """The arms, with the frozen ones that `freeze` brings along."""
        return arms_of(self.arms, self.freeze)

    def options(self) -> ModelOptions:
        """How the model is loaded."""
        assert isinstance(self.model, ModelOptions)
        if self.tuning.method == "full" and self.model.dtype == "auto":
            return replace(self.model, dtype="float32")
        return self.model


def measure_effect(
    scored: Dataset | DatasetDict,
    is_safe: IsSafe,
    study: Study,
    output: str | Path,
    *,
    on_run: Callable[[Run, int, int], None] | None = None,
) -> EffectReport:
    """Tune the model on each arm with each seed, ask it before and after, and say what the filter does to it.

    Every finished run is written to `output` at once; a call with the same inputs takes it from there. A run depends
    on the model, the rows of its arm, the tuning, the seed, the questions and the versions of what tunes: where one of
    them changes, the runs that depend on it are done anew, and the log says what changed.

    Args:
        scored: rows with the score column; all splits together.
        is_safe: the decision.
        study: what is tuned and asked.
        output: folder for ``runs/``, ``effect.json`` and the plot; an earlier study there goes on.
        on_run: called after each run with it, its number and how many there are.

    Raises:
        MissingError: the extra `train` is not installed, or the score column is missing.
        OptionError: blocks that cannot be frozen; `output` holds something else.
        DataError: an empty arm, no questions left, or a model that refuses nothing before it is tuned.
        ModelError: NaN losses or too little memory; finished runs are kept.
    """
    require_trainer()
    options, tuning, arms = study.options(), study.tuning, study.chosen_arms()
    if study.freeze is not None:
        _require_blocks(options, study.freeze, tuning)
    ledger = Ledger(Path(output))
    key, device = _pinned(options)
    rows = read_material(scored, is_safe, key, tuning.max_length, options.chat_template, study.columns)
    total = len(rows.kept) + rows.unreadable
    questions = study.questions
    if not questions.benign:
        rows, benign = rows.hold_out(study.hold_out)
        questions = replace(questions, benign=benign)
    asked, left_out = questions.without([*rows.prompts, *study.known_prompts], rows.ids)
    asked = _readable(asked, key, tuning.max_length, options.chat_template)
    if study.ask_at_most is not None:
        asked = asked.first(study.ask_at_most)
    asked.required(left_out)
    judge = matcher(study.judge)
    places = {
        (arm.name, seed): choose_rows(arm.rows, rows.kept, rows.lengths, seed) for arm in arms for seed in study.seeds
    }
    inputs = _inputs(study, key, is_safe, rows, asked, judge)
    ledger.open(inputs)
    runs = Runs(key, device, rows, tuning, asked, judge, study.max_new_tokens, options.chat_template, ledger, inputs)
    before = runs.before()
    if not before.measured.harmful.refused:
        raise DataError(
            f"{key.model} refuses none of {before.measured.harmful.asked} harmful prompts before it is tuned: "
            "there is nothing to lose",
            found=f"{before.measured.harmful.answered} answered, {before.measured.harmful.degenerate} no text",
            fix="use an aligned (instruction-tuned) model, prompts that it refuses, or another `judge=...`",
        )
    done: list[Run] = []
    for seed in study.seeds:  # seed by seed, so that a study cut short has compared all arms
        for arm in arms:
            done.append(runs.run(arm, seed, places[arm.name, seed], study.freeze))
            if on_run is not None:
                on_run(done[-1], len(done), len(study.seeds) * len(arms))
    order = {arm.name: at for at, arm in enumerate(arms)}
    done.sort(key=lambda run: (order[run.arm], run.seed))
    counts = {"rows": total, "kept": int(rows.kept.sum()), "dropped": int((~rows.kept).sum())}
    counts |= {"unreadable": rows.unreadable, "held_out": total - len(rows.kept) - rows.unreadable}
    counts |= asked.counts() | {f"{kind}_left_out": number for kind, number in left_out.items()}
    report = EffectReport(inputs, counts, before, tuple(done))
    draw(report, Path(output) / "effect")
    report.write(Path(output))
    return report


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


def _pinned(options: ModelOptions) -> tuple[ModelKey, torch.device]:
    """The model pinned to its bytes and number format, and the device it is tuned on."""
    from hf_safefilter.model import load
    from hf_safefilter.model.source import ModelKey

    device = load.pick_device(options.device, None)
    revision = load.resolve_revision(options.model, options.revision)
    config = load.model_config(ModelKey(options.model, revision, "float32")).get_text_config()
    return ModelKey(options.model, revision, load.pick_dtype(options.dtype, device, config.dtype)), device


def _require_blocks(options: ModelOptions, freeze: tuple[int, int], tuning: Tuning) -> None:
    """Raise for a range of blocks that cannot be frozen, before anything is tuned."""
    from hf_safefilter.freeze import freezing_plan, lora_settings

    if tuning.method == "full":
        freezing_plan(options.model, *freeze, revision=options.revision)
    else:
        lora_settings(options.model, *freeze, revision=options.revision)


def _inputs(
    study: Study, key: ModelKey, is_safe: IsSafe, rows: Material, asked: Questions, judge: Any
) -> dict[str, Any]:
    """Everything that decides a figure, as plain values: what runs are known by, and what the report states."""
    from hf_safefilter.model import load
    from hf_safefilter.model.template import template_digest

    return {
        "algorithm": ALGORITHM,
        "model": key.model,
        "revision": key.revision,
        "dtype": key.dtype,
        "template": template_digest(load.tokenizer(key), study.options().chat_template),
        "column": is_safe.column,
        "threshold_hex": float(is_safe.threshold).hex(),
        "rule": is_safe.rule,
        "rows": digest_of([rows.ids, rows.kept.tolist()]),
        "tuning": asdict(study.tuning),
        "arms": [arm.name for arm in study.chosen_arms()],
        "seeds": list(study.seeds),
        "freeze": study.freeze,
        "questions": {
            "source": asked.source,
            "harmful": digest_of(asked.harmful),
            "over_refusal": digest_of(asked.over_refusal),
            "benign": digest_of([one.messages for one in asked.benign]),
        },
        "judge": judge.record() if hasattr(judge, "record") else type(judge).__qualname__,
        "replies": {"max_new_tokens": study.max_new_tokens},
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
