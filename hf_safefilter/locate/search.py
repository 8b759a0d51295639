"""One call for all ways to find the layers that carry safety."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_safefilter.errors import OptionError
from hf_safefilter.locate import bounds, gap, scaling
from hf_safefilter.locate.bounds import BoundsOptions
from hf_safefilter.locate.gap import GapOptions
from hf_safefilter.locate.refusals import Judge, RefusalMatcher, Verdict, matcher, record_of
from hf_safefilter.locate.safety_layers import SafetyLayers
from hf_safefilter.locate.scaling import ScalingOptions
from hf_safefilter.locate.search_plot import write_plot
from hf_safefilter.locate.search_prompts import Given, Prompts, prompts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_safefilter.locate.journal import Journal
    from hf_safefilter.locate.subject import Subject
    from hf_safefilter.locate.sweep import Cell, Sweep

logger = logging.getLogger(__name__)

Method = Literal["gap", "scaling", "bounds"]
Options = GapOptions | ScalingOptions | BoundsOptions
OPTIONS: dict[str, type[Options]] = {"gap": GapOptions, "scaling": ScalingOptions, "bounds": BoundsOptions}
"""Method -> its options."""

Judging = str | RefusalMatcher | Judge | Callable[[str], bool]


def locate_safety_layers(
    model: str | PreTrainedModel,
    prompts: Given = None,
    method: Method = "gap",
    *,
    options: Options | None = None,
    refusals: Judging | None = None,
    folder: Path | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    chat_template: str | None = None,
) -> SafetyLayers:
    """Find the blocks that carry a model's safety, and the layer to read.

    "gap": where the states of malicious prompts part from those of normal ones (Safety Layers, section 3.1); one pass
    over each prompt, no generation. "scaling": the block whose loudness refusals follow (LARF, section 4.1); generates
    L x 6 replies a prompt. "bounds": the range of blocks whose scaling moves refusals most (Safety Layers, sections 3.2
    to 3.4); starts from the gap unless the options name a range.

    A loaded model is changed while it is searched and left as it was, bit for bit.

    Args:
        model: Hub id, local folder or "toy"; or a loaded causal language model, with `tokenizer`.
        prompts: texts by kind (`locate.prompts.KINDS`); a plain list is over-refusal prompts (not for "gap").
            Kinds that are not given come from the starter set.
        method: one of `OPTIONS`.
        options: of that method.
        refusals: another judge of replies than the preset in the options: a matcher, a function, a guard.
        folder: keep what is found there, and go on from what is there after a kill; the result is saved there.
        tokenizer: of a loaded model.
        revision: Hub branch, tag or commit.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: None picks.
        chat_template: for a model that has none: a Jinja template, or "plain".

    Returns:
        The result; where `signal` is False nothing was found, and `why` says so.

    Raises:
        OptionError: unknown methods, or options that do not fit.
        DataError: prompts that are too few or cannot be asked, or a folder that holds another search.
        ModelError: a model whose blocks cannot be found or scaled.
    """
    from hf_safefilter.locate.subject import Subject

    if method not in OPTIONS:
        raise OptionError(f"method {method!r} is not known", fix=f"use one of {', '.join(OPTIONS)}")
    options = options if options is not None else OPTIONS[method]()
    if not isinstance(options, OPTIONS[method]):
        raise OptionError(
            f"{type(options).__name__} are not the options of {method!r}", fix=f"pass {OPTIONS[method].__name__}(...)"
        )
    if folder is not None and Path(folder).is_file():
        raise OptionError(f"{folder} is a file", fix="name a folder for what is found")
    subject = Subject.of(
        model, tokenizer=tokenizer, revision=revision, dtype=dtype, device=device, chat_template=chat_template
    )
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and method == "gap":
        raise OptionError("the gap compares two kinds of prompts", fix="pass {'normal': [...], 'malicious': [...]}")
    begin = time.perf_counter()
    if method == "gap":
        found = _gap(subject, prompts, options)
    else:
        judge = matcher(refusals if refusals is not None else options.refusals)
        search = _scaling if method == "scaling" else _bounds
        found = search(subject, prompts, options, judge, None if folder is None else Path(folder))
    found.facts["options"] = asdict(options)
    found.facts["seconds"] = round(time.perf_counter() - begin, 2)
    if folder is not None:
        found.save(folder)
        write_plot(found, Path(folder) / "locate")
    return found


def _gap(subject: Subject, given: Given, options: GapOptions) -> SafetyLayers:
    kinds = [prompts_of(given, kind, kind).require(gap.LEAST_PROMPTS) for kind in ("normal", "malicious")]
    states = [subject.prompt_states(kind.texts) for kind in kinds]
    found = gap.find_gap(*states, options)
    facts = {"prompts": {kind.kind: kind.record() for kind in kinds}, "chance": found.chance}
    return SafetyLayers("gap", found.first, found.last, found.why, found.table(), subject.record(), facts)


def _scaling(
    subject: Subject, given: Given, options: ScalingOptions, judge: RefusalMatcher | Judge, folder: Path | None
) -> SafetyLayers:
    from hf_safefilter.locate.sweep import Cell

    asked = prompts_of(given, "over_refusal", "over_refusal").require(scaling.LEAST_PROMPTS)
    sweep, journal, facts = _sweep(subject, asked, options, judge, folder, "scaling")
    n_blocks = subject.n_blocks()
    cells = {(block, scale): Cell((block,), scale) for block in range(n_blocks) for scale in options.scales}
    verdicts = _run(sweep, [Cell(), *cells.values()], journal)
    by_place = {place: verdicts[cell] for place, cell in cells.items()}
    refused = np.array(
        [
            [[one == "refusal" for one in by_place[block, scale]] for scale in options.scales]
            for block in range(n_blocks)
        ]
    )
    plain = np.array([one == "refusal" for one in verdicts[Cell()]])
    found = scaling.find_sensitive(refused, plain, options)
    facts |= {
        "unscaled": dict(Counter(verdicts[Cell()])),
        "top": [{"block": block, "score": float(found.score[block])} for block in found.top],
        "chance": found.chance,
        "chosen_share": found.chosen_share,
    }
    table = scaling.scaling_table(by_place, found, options)
    return SafetyLayers("scaling", found.best, found.best, found.why, table, subject.record(), facts)


def _refused(verdicts: Sequence[Verdict]) -> list[bool]:
    return [verdict == "refusal" for verdict in verdicts]


def _bounds(
    subject: Subject, given: Given, options: BoundsOptions, judge: RefusalMatcher | Judge, folder: Path | None
) -> SafetyLayers:
    from hf_safefilter.locate.sweep import Cell

    n_blocks = subject.n_blocks()
    asked = prompts_of(given, "over_refusal", "over_refusal").require(scaling.LEAST_PROMPTS)
    record = subject.record()
    facts: dict[str, Any] = {}
    initial = options.initial
    if initial is None:
        kinds = given if not isinstance(given, Sequence) else {"over_refusal": given}
        start = _gap(subject, kinds, GapOptions())
        facts["gap"] = start.to_json()
        if not start.signal:
            return SafetyLayers("bounds", None, None, f"no range to start from: {start.why}", (), record, facts)
        initial = (start.first, start.last)
    first, last = initial
    if not 0 <= first <= last < n_blocks:
        raise OptionError(
            f"the range {first} to {last} is not in this model",
            found=f"{n_blocks} blocks",
            fix=f"name blocks from 0 to {n_blocks - 1}, the lower first",
        )
    sweep, journal, more = _sweep(subject, asked, options, judge, folder, "bounds")
    facts |= more
    plain = _run(sweep, [Cell()], journal)[Cell()]
    refused = plain.count("refusal")
    facts |= {"initial": list(initial), "unscaled": dict(Counter(plain))}
    measured: dict[Cell, list[Verdict]] = {}

    def count(ranges: list[tuple[int, int]], by: float) -> list[int]:
        cells = [Cell(tuple(range(low, high + 1)), by) for low, high in ranges]
        measured.update(_run(sweep, cells, journal))
        return [measured[cell].count("refusal") for cell in cells]

    uppers = bounds.around(last, options.window, first, n_blocks - 1)
    alpha, swept = options.alpha, []
    if alpha is None:
        direction = "attenuate" if refused > len(plain) / 2 else "amplify"
        alpha, swept = bounds.first_loud(count, first, uppers, direction, len(plain), options)
        facts["sweep"] = swept
    facts["alpha"] = alpha
    if alpha is None:
        why = f"refusals hardly change under any scale; {refused} of {len(plain)} prompts are refused without one"
        return SafetyLayers("bounds", None, None, why, _ranges(measured), record, facts)
    lowers = bounds.around(first, options.window, 0, n_blocks - 1)
    found = bounds.find_bounds(count, first, uppers, lowers, alpha)
    tried = [cell for cell in measured if cell.by == alpha]
    best = tried.index(Cell(tuple(range(found.first, found.last + 1)), alpha))
    chance = bounds.chance_of(plain, [measured[cell] for cell in tried], best, alpha, len(measured))
    facts |= {"chance": chance, "at_edge": found.at_edge(uppers, lowers)}
    why = f"the best range may differ from the unscaled model, or from the other ranges, by chance (p = {chance:.2f})"
    why = "" if chance <= bounds.LEVEL else why
    ends = (None, None) if why else (found.first, found.last)
    return SafetyLayers("bounds", *ends, why, _ranges(measured), record, facts)


def _ranges(measured: dict[Cell, list[Verdict]]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"first": cell.blocks[0], "last": cell.blocks[-1], "alpha": cell.by, "refusals": found.count("refusal"),
         "degenerate": found.count("degenerate")}
        for cell, found in measured.items()
    )  # fmt: skip


def _sweep(
    subject: Subject, asked: Prompts, options: ScalingOptions | BoundsOptions, judge: RefusalMatcher | Judge,
    folder: Path | None, method: str,
) -> tuple[Sweep, Journal, dict[str, Any]]:  # fmt: skip
    """The sweep over a model, after a look at whether scaling does anything to it; its journal; and what to report."""
    import torch

    from hf_safefilter.locate.journal import Journal
    from hf_safefilter.locate.subject import tensors_digest
    from hf_safefilter.locate.sweep import Sweep
    from hf_safefilter.model.generate import evaluating
    from hf_safefilter.model.scaled import PROJECTIONS, WITHOUT_O, form_of, require_effect

    model = subject.causal()
    parts = PROJECTIONS if options.include_o_proj else WITHOUT_O
    sweep = Sweep(
        model, subject.tokenizer, asked.texts, judge, max_new_tokens=options.max_new_tokens,
        chat_template=subject.chat_template, parts=parts,
    )  # fmt: skip
    ids = torch.from_numpy(sweep.ids[0].astype(np.int64))[None].to(model.device)
    with evaluating(model), torch.inference_mode():
        require_effect(model, subject.n_blocks() // 2, lambda: model(input_ids=ids), parts)
    form = form_of(model)
    if form == "branches":
        logger.warning(
            "%s has norms that cancel a scale of its matrices: what its branches put out is scaled instead",
            type(model).__name__,
        )
    facts = {
        "prompts": {asked.kind: asked.record()},
        "refusals": record_of(judge),
        "form": form,
        "max_new_tokens": options.max_new_tokens,
        "parts": list(parts),
    }
    task = {"method": method, "model": subject.record()} | facts
    if folder is not None and subject.held is not None:  # its name does not say what was trained into it
        task["weights"] = tensors_digest(subject.held.state_dict())
    return sweep, Journal(None if folder is None else folder / f"{method}.progress.jsonl", task), facts


def _run(sweep: Sweep, cells: Sequence[Cell], journal: Journal) -> dict[Cell, list[Verdict]]:
    from transformers.utils.logging import tqdm

    with tqdm(total=len(set(cells)) * len(sweep.prompts), unit=" replies", desc="Search") as bar:
        return sweep.run(cells, journal, bar.update)
