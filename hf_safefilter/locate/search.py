"""One function for all methods that find the layers that carry safety."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_safefilter.checks import require_choice
from hf_safefilter.errors import OptionError
from hf_safefilter.locate import bounds, gap, scaling
from hf_safefilter.locate.bounds import BoundsOptions
from hf_safefilter.locate.gap import GapOptions
from hf_safefilter.locate.refusals import Judge, JudgeInput, RefusalMatcher, Verdict, matcher, record_of
from hf_safefilter.locate.safety_layers import SafetyLayers
from hf_safefilter.locate.scaling import ScalingOptions
from hf_safefilter.locate.search_plot import write_plot
from hf_safefilter.locate.search_prompts import Prompts, PromptsInput, prompts_of_kind
from hf_safefilter.model.source import ModelKey

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_safefilter.locate.journal import Journal
    from hf_safefilter.locate.subject import Subject
    from hf_safefilter.locate.sweep import Cell, Sweep

logger = logging.getLogger(__name__)

Method = Literal["gap", "scaling", "bounds"]
Options = GapOptions | ScalingOptions | BoundsOptions
OPTIONS: dict[str, type[Options]] = {"gap": GapOptions, "scaling": ScalingOptions, "bounds": BoundsOptions}
"""Options of each method."""


def locate_safety_layers(
    model: str | PreTrainedModel,
    prompts: PromptsInput = None,
    method: Method = "gap",
    *,
    options: Options | None = None,
    refusals: JudgeInput | None = None,
    folder: Path | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    chat_template: str | None = None,
) -> SafetyLayers:
    """Find the blocks that carry a model's safety, and the layer to read.

    "gap": where the states of malicious prompts diverge from those of normal ones (Safety Layers, section 3.1); one
    pass over each prompt, no generation. "scaling": the block whose scale refusals follow (LARF, section 4.1);
    generates L x 6 replies a prompt. "bounds": the range of blocks whose scaling moves refusals most (Safety Layers,
    sections 3.2 to 3.4); starts from the gap unless the options name a range.

    A loaded model is changed during the search and restored afterwards, bit for bit.

    Args:
        model: Hub id, local folder or "toy"; or a loaded causal language model, with `tokenizer`.
        prompts: Texts by kind (`locate.search_prompts.KINDS`); a plain list is over-refusal prompts (not for "gap").
            Missing kinds are taken from the starter set.
        method: Method of the search, one of `OPTIONS`.
        options: Options of that method; None takes the defaults.
        refusals: Judge of replies in place of the preset in the options: a matcher, a function or a guard.
        folder: Folder for the result and for progress; a search that was killed is resumed from it.
        tokenizer: Tokenizer of a loaded model.
        revision: Branch, tag or commit on the Hub.
        dtype: Number format of the model: "auto", "float32", "bfloat16" or "float16".
        device: Device to compute on; None picks the best one.
        chat_template: Template for a model that has none: a Jinja template, or "plain".

    Returns:
        The result; if its `signal` is False, no layers were found, and `why` gives the reason.

    Raises:
        OptionError: An unknown method, or options that do not belong to it.
        DataError: Too few prompts, prompts that cannot be asked, or a folder that belongs to another search.
        ModelError: A model whose blocks cannot be found or scaled.
    """
    from hf_safefilter.locate.subject import Subject

    require_choice("method", method, OPTIONS)
    options = options if options is not None else OPTIONS[method]()
    if not isinstance(options, OPTIONS[method]):
        raise OptionError(
            f"{type(options).__name__} are not the options of the method {method!r}",
            fix=f"pass `options={OPTIONS[method].__name__}(...)`",
        )
    folder = None if folder is None else Path(folder)
    if folder is not None and folder.is_file():
        raise OptionError(f"{folder} is a file", fix="name a folder for the result")
    subject = Subject.of(
        model, tokenizer=tokenizer, revision=revision, dtype=dtype, device=device, chat_template=chat_template
    )
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and method == "gap":
        raise OptionError(
            "the gap compares two kinds of prompts", fix='pass a mapping: {"normal": [...], "malicious": [...]}'
        )
    begin = time.perf_counter()
    if isinstance(options, GapOptions):
        result = _gap(subject, prompts, options)
    else:
        judge = matcher(refusals if refusals is not None else options.refusals)
        if isinstance(options, ScalingOptions):
            result = _scaling(subject, prompts, options, judge, folder)
        else:
            result = _bounds(subject, prompts, options, judge, folder)
    seconds = round(time.perf_counter() - begin, 2)
    result = replace(result, facts={**result.facts, "options": asdict(options), "seconds": seconds})
    if folder is not None:
        result.save(folder)
        write_plot(result, folder / "locate")
    return result


def _gap(subject: Subject, prompts: PromptsInput, options: GapOptions) -> SafetyLayers:
    normal, malicious = (prompts_of_kind(prompts, kind).require(gap.LEAST_PROMPTS) for kind in ("normal", "malicious"))
    measured = gap.find_gap(subject.prompt_states(normal.texts), subject.prompt_states(malicious.texts), options)
    facts = {"prompts": {kind.kind: kind.record() for kind in (normal, malicious)}, "chance": measured.chance}
    return SafetyLayers("gap", measured.first, measured.last, measured.why, measured.table(), subject.record(), facts)


def _scaling(
    subject: Subject, prompts: PromptsInput, options: ScalingOptions, judge: RefusalMatcher | Judge,
    folder: Path | None,
) -> SafetyLayers:  # fmt: skip
    from hf_safefilter.locate.sweep import Cell

    over_refusal = prompts_of_kind(prompts, "over_refusal").require(scaling.LEAST_PROMPTS)
    sweep, journal, facts = _prepare(subject, over_refusal, options, judge, folder, "scaling")
    n_blocks = subject.n_blocks()
    cells = {(block, scale): Cell((block,), scale) for block in range(n_blocks) for scale in options.scales}
    by_cell = _run(sweep, [Cell(), *cells.values()], journal)
    verdicts = {key: by_cell[cell] for key, cell in cells.items()}
    refused = np.array([[_refused(verdicts[block, scale]) for scale in options.scales] for block in range(n_blocks)])
    sensitivity = scaling.find_sensitive(refused, np.array(_refused(by_cell[Cell()])), options)
    facts |= {
        "unscaled": dict(Counter(by_cell[Cell()])),
        "top": [{"block": block, "score": float(sensitivity.score[block])} for block in sensitivity.top],
        "chance": sensitivity.chance,
        "chosen_share": sensitivity.chosen_share,
    }
    table = scaling.scaling_table(verdicts, sensitivity, options)
    best = sensitivity.best
    return SafetyLayers("scaling", best, best, sensitivity.why, table, subject.record(), facts)


def _refused(verdicts: Sequence[Verdict]) -> list[bool]:
    return [verdict == "refusal" for verdict in verdicts]


def _bounds(
    subject: Subject, prompts: PromptsInput, options: BoundsOptions, judge: RefusalMatcher | Judge,
    folder: Path | None,
) -> SafetyLayers:  # fmt: skip
    from hf_safefilter.locate.sweep import Cell

    n_blocks = subject.n_blocks()
    over_refusal = prompts_of_kind(prompts, "over_refusal").require(scaling.LEAST_PROMPTS)
    record = subject.record()
    facts: dict[str, Any] = {}
    initial = options.initial
    if initial is None:
        by_kind = {"over_refusal": prompts} if isinstance(prompts, Sequence) else prompts
        start = _gap(subject, by_kind, GapOptions())
        facts["gap"] = start.to_json()
        if not start.signal:
            return SafetyLayers("bounds", None, None, f"no range to start from: {start.why}", (), record, facts)
        initial = start.block_range
    first, last = initial
    if not 0 <= first <= last < n_blocks:
        raise OptionError(
            f"the model has no blocks {first} to {last}",
            found=f"{n_blocks} blocks",
            fix=f"name blocks from 0 to {n_blocks - 1}, the lower first",
        )
    sweep, journal, sweep_facts = _prepare(subject, over_refusal, options, judge, folder, "bounds")
    facts |= sweep_facts
    plain = _run(sweep, [Cell()], journal)[Cell()]
    refused = plain.count("refusal")
    facts |= {"initial": list(initial), "unscaled": dict(Counter(plain))}
    measured: dict[Cell, list[Verdict]] = {}

    def count(ranges: list[tuple[int, int]], by: float) -> list[int]:
        cells = [Cell(tuple(range(low, high + 1)), by) for low, high in ranges]
        measured.update(_run(sweep, cells, journal))
        return [measured[cell].count("refusal") for cell in cells]

    uppers = bounds.window_around(last, options.window, first, n_blocks - 1)
    alpha = options.alpha
    if alpha is None:
        direction: bounds.Direction = "attenuate" if refused > len(plain) / 2 else "amplify"
        alpha, facts["sweep"] = bounds.sweep_alphas(count, first, uppers, direction, len(plain), options)
    facts["alpha"] = alpha
    if alpha is None:
        why = f"refusals hardly change under any scale; {refused} of {len(plain)} prompts are refused without one"
        return SafetyLayers("bounds", None, None, why, _ranges(measured), record, facts)
    lowers = bounds.window_around(first, options.window, 0, n_blocks - 1)
    best = bounds.find_bounds(count, first, uppers, lowers, alpha)
    tried = [cell for cell in measured if cell.by == alpha]
    index = tried.index(Cell(tuple(range(best.first, best.last + 1)), alpha))
    chance = bounds.chance_of(plain, [measured[cell] for cell in tried], index, alpha, len(measured))
    facts |= {"chance": chance, "at_edge": best.at_edge(uppers, lowers)}
    if chance > bounds.LEVEL:
        why = "the best range may differ from the unscaled model, or from the other ranges, by chance"
        return SafetyLayers("bounds", None, None, f"{why} (p = {chance:.2f})", _ranges(measured), record, facts)
    return SafetyLayers("bounds", best.first, best.last, "", _ranges(measured), record, facts)


def _ranges(measured: dict[Cell, list[Verdict]]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"first": cell.blocks[0], "last": cell.blocks[-1], "alpha": cell.by, "refusals": verdicts.count("refusal"),
         "degenerate": verdicts.count("degenerate")}
        for cell, verdicts in measured.items()
    )  # fmt: skip


def _prepare(
    subject: Subject, prompts: Prompts, options: ScalingOptions | BoundsOptions, judge: RefusalMatcher | Judge,
    folder: Path | None, method: str,
) -> tuple[Sweep, Journal, dict[str, Any]]:  # fmt: skip
    """The sweep over a model on which scaling has an effect, its journal, and the facts for the result."""
    import torch

    from hf_safefilter.locate.journal import Journal
    from hf_safefilter.locate.subject import tensors_digest
    from hf_safefilter.locate.sweep import Sweep
    from hf_safefilter.model.generate import evaluating
    from hf_safefilter.model.scaled import PROJECTIONS, WITHOUT_O, form_of, require_effect

    model = subject.causal()
    parts = PROJECTIONS if options.include_o_proj else WITHOUT_O
    sweep = Sweep(
        model, subject.tokenizer, prompts.texts, judge, max_new_tokens=options.max_new_tokens,
        chat_template=subject.chat_template, parts=parts,
    )  # fmt: skip
    ids = torch.from_numpy(sweep.ids[0].astype(np.int64))[None].to(model.device)
    with evaluating(model), torch.inference_mode():
        require_effect(model, subject.n_blocks() // 2, lambda: model(input_ids=ids), parts)
    form = form_of(model)
    if form == "branches":
        logger.warning(
            "%s has norms that cancel a scale of its matrices: the outputs of its branches are scaled instead",
            type(model).__name__,
        )
    facts = {
        "prompts": {prompts.kind: prompts.record()},
        "refusals": record_of(judge),
        "form": form,
        "max_new_tokens": options.max_new_tokens,
        "parts": list(parts),
    }
    task = {"method": method, "model": subject.record()} | facts
    if folder is not None and not isinstance(subject.model, ModelKey):  # its name does not tell how it was trained
        task["weights"] = tensors_digest(subject.model.state_dict())
    return sweep, Journal(None if folder is None else folder / f"{method}.progress.jsonl", task), facts


def _run(sweep: Sweep, cells: Sequence[Cell], journal: Journal) -> dict[Cell, list[Verdict]]:
    from transformers.utils.logging import tqdm

    with tqdm(total=len(set(cells)) * len(sweep.prompts), unit=" replies", desc="Search") as bar:
        return sweep.run(cells, journal, bar.update)
