"""measure_effect: the same tuning on every arm, the same questions before and after; finished runs are reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_safefilter.checks import require_whole
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.refusals_to_add import diverse_refusals
from hf_safefilter.effect import margin
from hf_safefilter.effect.arms import MASKED, REFUSALS, USUAL, Arm, arms_of, choose_rows
from hf_safefilter.effect.effect_plot import draw
from hf_safefilter.effect.effect_report import EffectReport
from hf_safefilter.effect.ledger import Ledger, Run, digest_of
from hf_safefilter.effect.material import Material, read_material, tokens_of
from hf_safefilter.effect.questions import Questions
from hf_safefilter.effect.runs import Runs
from hf_safefilter.effect.tuning import Tuning, require_trainer
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.refusals import Judge, JudgeInput, RefusalMatcher, matcher
from hf_safefilter.model.reading_options import ModelOptions
from hf_safefilter.starter import starter_rows

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.model.source import ModelKey

ALGORITHM = 2
"""Version of the computation, raised whenever its results change; runs of another version are not reused."""

_LARGEST_SEED = 2**32 - 1  # of NumPy's global generator, which training seeds too

_ADDED_SHARE = 0.01  # arXiv 2510.21885 adds 0.05 to 0.5 % to sets that are far larger than those of a study

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True, slots=True)
class Study:
    """Options of a study: which model is tuned, how and how often, and what is asked.

    Args:
        model: Hub id, local folder, "toy", or `ModelOptions` that say how the model is loaded (full tuning is done in
            float32 unless they name a dtype).
        questions: Questions to ask. Without benign rows, up to `hold_out` kept rows, drawn at random, take their place
            and are left out of every arm.
        tuning: How every arm is tuned.
        arms: Names of arms: some of `ARMS`, each with or without "+frozen".
        seeds: Seeds of row draws, row order, adapters and dropout; the same for all arms.
        freeze: First and last block to freeze in the frozen arms; if none is named, ``all+frozen`` and ``kept+frozen``
            are added.
        known_prompts: Prompts of the references, which are not asked.
        hold_out: Largest number of kept rows that replace missing benign rows.
        ask_at_most: Largest number of questions of each kind, among those that no model has seen; None asks all.
        judge: Judge of replies, as `locate.refusals.matcher` takes it.
        max_new_tokens: Largest number of tokens of a reply.
        columns: Columns of prompt and response, for rows of no known shape.

    Raises:
        OptionError: Invalid arms, seeds or numbers.
    """

    model: ModelOptions | str
    questions: Questions
    _: KW_ONLY
    tuning: Tuning = field(default_factory=Tuning)
    arms: Sequence[str] = USUAL
    seeds: Sequence[int] = (0, 1, 2)
    freeze: tuple[int, int] | None = None
    known_prompts: Sequence[str] = ()
    hold_out: int = 200
    ask_at_most: int | None = None
    judge: JudgeInput = "broad"
    max_new_tokens: int = 32
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelOptions):
            object.__setattr__(self, "model", ModelOptions(str(self.model)))
        require_whole("hold_out", self.hold_out, least=0)
        require_whole("max_new_tokens", self.max_new_tokens, least=1)
        if self.ask_at_most is not None:
            require_whole("ask_at_most", self.ask_at_most, least=1)
        seeds = tuple(self.seeds)
        for seed in seeds:
            require_whole("seeds", seed, least=0, most=_LARGEST_SEED)
        if not seeds or len(set(seeds)) < len(seeds):
            raise OptionError(
                f"`seeds={seeds}` names no seed, or one of them twice",
                fix="use for example `seeds=(0, 1, 2)`",
            )
        # the inputs of a study are written as JSON, which knows no NumPy
        object.__setattr__(self, "seeds", tuple(map(int, seeds)))
        object.__setattr__(self, "max_new_tokens", int(self.max_new_tokens))
        self.chosen_arms()

    def chosen_arms(self) -> list[Arm]:
        """The arms, with the frozen ones that `freeze` adds."""
        return arms_of(self.arms, self.freeze)

    def options(self) -> ModelOptions:
        """How the model is loaded."""
        assert isinstance(self.model, ModelOptions)  # set by __post_init__
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
    """Tune the model on each arm with each seed, measure it before and after, and report the effect of the filter.

    Every run is written to `output` when it is finished; a call with the same inputs reuses it. A run depends on the
    model, the rows of its arm, the tuning, the seed, the questions and the versions of the packages that tune. If one
    of them changes, the runs that depend on it are repeated, and the log says what changed.

    Args:
        scored: Rows with the score column; all splits are taken together.
        is_safe: Decision on the rows.
        study: Options of the study.
        output: Folder for ``runs/``, ``effect.json`` and the plot; an earlier study in it is resumed.
        on_run: Called after each run with the run, its number and the number of runs.

    Raises:
        MissingError: The extra `train` is not installed, or the score column is missing.
        OptionError: Blocks that cannot be frozen, or an `output` that holds other files.
        DataError: An empty arm, no questions left, or a model that refuses nothing before it is tuned.
        ModelError: NaN losses or too little memory; finished runs are kept.
    """
    from hf_safefilter.model import load

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
    if any(arm.rows == REFUSALS for arm in arms):
        known = starter_rows("safe")
        to_add = diverse_refusals(min(len(known), max(1, round(_ADDED_SHARE * int(rows.kept.sum())))), known)
        refusals = as_conversations([{name: row[name] for name in ("prompt", "response")} for row in to_add])
        rows = rows.with_refusals(refusals, tokens_of(refusals, key, tuning.max_length, options.chat_template))
    questions, left_out = questions.without([*rows.prompts, *study.known_prompts], rows.ids)
    questions = _with_readable_rows(questions, key, tuning.max_length, options.chat_template)
    if study.ask_at_most is not None:
        questions = questions.first(study.ask_at_most)
    questions.required(left_out)
    judge = matcher(study.judge, option="judge")
    left = rows.left if any(arm.rows == MASKED for arm in arms) else None
    chosen = {
        (arm.name, seed): choose_rows(arm.rows, rows.kept, rows.lengths, seed, left, rows.added)
        for arm in arms
        for seed in study.seeds
    }
    begun = margin.begun_answers(load.tokenizer(key), questions.harmful, chat_template=options.chat_template)
    inputs = _inputs(study, key, is_safe, rows, questions, judge)
    ledger.open(inputs)
    runs = Runs(
        key, device, rows, tuning, questions, begun, judge, study.max_new_tokens, options.chat_template, ledger, inputs
    )
    before = runs.before()
    if not before.measured.harmful.refused:
        raise DataError(
            f"{key.model} refuses none of {before.measured.harmful.asked} harmful prompts before it is tuned: "
            "there is nothing to lose",
            found=f"{before.measured.harmful.answered} answered, {before.measured.harmful.degenerate} degenerate",
            fix="use an aligned (instruction-tuned) model, prompts that it refuses, or another `judge=...`",
        )
    finished: list[Run] = []
    for seed in study.seeds:  # seed by seed, so that an interrupted study has compared all arms
        for arm in arms:
            finished.append(runs.run(arm, seed, chosen[arm.name, seed], study.freeze))
            if on_run is not None:
                on_run(finished[-1], len(finished), len(study.seeds) * len(arms))
    order = {arm.name: index for index, arm in enumerate(arms)}
    finished.sort(key=lambda run: (order[run.arm], run.seed))
    counts = {"rows": total, "kept": int(rows.kept.sum()), "dropped": int((~rows.kept).sum())}
    counts |= {"unreadable": rows.unreadable, "held_out": total - len(rows.kept) - rows.unreadable}
    counts |= {"refusals_added": rows.added} if rows.added else {}
    counts |= questions.counts() | {f"{kind}_left_out": number for kind, number in left_out.items()}
    report = EffectReport(inputs, counts, before, tuple(finished))
    draw(report, Path(output) / "effect")
    report.write(Path(output))
    return report


def _with_readable_rows(
    questions: Questions, key: ModelKey, max_length: int | None, chat_template: str | None
) -> Questions:
    """The questions without benign rows that the model cannot read; otherwise their loss would fail after the tuning.

    Raises:
        DataError: The model can read none of the benign rows.
    """
    tokens = tokens_of(questions.benign, key, max_length, chat_template)
    benign = tuple(row for row, read in zip(questions.benign, tokens, strict=True) if not read.reason)
    if questions.benign and not benign:
        raise DataError(
            f"none of the {len(tokens)} benign rows can be read",
            found=", ".join(sorted({row.reason for row in tokens})),
            fix="raise `max_length=...`, or give other rows: `benign=...`",
        )
    return replace(questions, benign=benign)


def _pinned(options: ModelOptions) -> tuple[ModelKey, torch.device]:
    """The model pinned to its files and number format, and the device on which it is tuned."""
    from hf_safefilter.model import load
    from hf_safefilter.model.source import ModelKey

    device = load.pick_device(options.device, None)
    revision = load.resolve_revision(options.model, options.revision)
    config = load.model_config(ModelKey(options.model, revision, "float32")).get_text_config()
    stored = cast("torch.dtype | None", config.dtype)  # a loaded configuration holds a dtype, not its name
    return ModelKey(options.model, revision, load.pick_dtype(options.dtype, device, stored)), device


def _require_blocks(options: ModelOptions, freeze: tuple[int, int], tuning: Tuning) -> None:
    """Raise for a range of blocks that cannot be frozen, before any tuning."""
    from hf_safefilter.freeze import freezing_plan, lora_settings

    if tuning.method == "full":
        freezing_plan(options.model, *freeze, revision=options.revision)
    else:
        lora_settings(options.model, *freeze, revision=options.revision)


def _inputs(
    study: Study, key: ModelKey, is_safe: IsSafe, rows: Material, questions: Questions, judge: RefusalMatcher | Judge
) -> dict[str, Any]:
    """Plain values of everything that results depend on, to identify runs and for the report."""
    from hf_safefilter.model import load
    from hf_safefilter.model.chat_template import template_digest

    return {
        "algorithm": ALGORITHM,
        "model": key.model,
        "revision": key.revision,
        "dtype": key.dtype,
        "template": template_digest(load.tokenizer(key), study.options().chat_template),
        "column": is_safe.column,
        "threshold_hex": float(is_safe.threshold).hex(),
        "rule": is_safe.rule,
        "decisions": is_safe.decisions_digest,
        "rows": digest_of([rows.ids, rows.kept.tolist()]),
        "tuning": asdict(study.tuning),
        "arms": [arm.name for arm in study.chosen_arms()],
        "seeds": list(study.seeds),
        "freeze": study.freeze,
        "questions": {
            "source": questions.source,
            "harmful": digest_of(questions.harmful),
            "over_refusal": digest_of(questions.over_refusal),
            "benign": digest_of([row_id(row) for row in questions.benign]),
        },
        "judge": judge.record() if hasattr(judge, "record") else type(judge).__qualname__,
        "replies": {"max_new_tokens": study.max_new_tokens},
        "openings": margin.record(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
