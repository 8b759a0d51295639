"""purify: one recipe from rows to the rows that are safe to tune on. Each stage is also a function of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.columns import EMBEDDING_PREFIX, score_column
from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.data.splits import require_free, require_rows
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.engine.local import add_rank_average, embed_rows, score_rows, score_stream_here
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.cross_validation import choose_layer, compares_with_references
from hf_safefilter.pipeline.auto_layer import searched, way_of
from hf_safefilter.pipeline.decision_rule import decide_threshold
from hf_safefilter.recipe import Recipe
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.open import open_references, require_same_reading
from hf_safefilter.scores import fitted_to, make_score, takes

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.decide.evaluate import Evaluation
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.engine import Engine
    from hf_safefilter.engine.streamed import StreamedScores
    from hf_safefilter.locate.cross_validation import LayerChoice
    from hf_safefilter.locate.safety_layers import SafetyLayers
    from hf_safefilter.publish.provenance import Provenance
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Purified:
    """What `purify` gives back.

    Attributes:
        kept: rows that may be tuned on, with the columns that were added; a stream where an engine scored a stream.
        dropped: the others.
        counts: rows in, kept, dropped, and dropped by reason.
        provenance: all that a card states.
        scored: the rows with their score columns, before the decision. Of a stream that an engine scored, `scored` and
            `dropped` hold ids, scores and reasons, and not the rows themselves.
        is_safe: the decision.
        layer_choice: how the layer was found, when the recipe said ``layer: auto``.
        evaluation: how well each score separates the labels, when the recipe named some.
    """

    kept: Dataset | DatasetDict | IterableDataset | IterableDatasetDict
    dropped: Dataset | DatasetDict
    counts: Mapping[str, Any]
    provenance: Provenance
    scored: Dataset | DatasetDict
    is_safe: IsSafe
    layer_choice: LayerChoice | SafetyLayers | None
    evaluation: Evaluation | None


def purify(
    ds: Dataset | DatasetDict | IterableDataset | None,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    source_revision: str | None = None,
    engine: Engine | None = None,
) -> Purified:
    """Embed, score, decide and describe, as the recipe says.

    Args:
        ds: the rows; None: the ones at ``data.path`` of the recipe.
        recipe: a `Recipe`, a mapping, or the path of a YAML file.
        source_revision: commit or digest of `ds`, when it was loaded by the caller.
        engine: where rows are embedded and scored, e.g. a `RayEngine`; None: in this process. Vectors are kept only
            where a method is fitted to them. A stream is never written down: it is read a second time when `kept` is.

    Raises:
        SafefilterError: what the stages raise; nothing is written and `ds` is never changed.
    """
    from datasets import IterableDataset, IterableDatasetDict

    recipe = Recipe.read(recipe)
    if ds is None:
        if recipe.data.path is None:
            raise OptionError("the recipe names no data.path and no rows were given", fix="add data.path")
        data = recipe.data
        loaded = load_rows(
            data.path, config=data.config, split=data.split, revision=data.revision, streaming=data.streaming
        )
        ds, source_revision = loaded.rows, loaded.revision
    require_rows(ds)
    references, choice = _references(recipe)
    layer = choice.layer if choice is not None else _named_layer(recipe)
    embed = EmbedLayers.of(recipe.model, [layer], recipe.data.columns)
    streaming = isinstance(ds, (IterableDataset, IterableDatasetDict))
    embedded = streamed = None
    if not streaming and (engine is None or any(fitted_to(m.name, m.options) == "rows" for m in recipe.methods)):
        embedded = embed_rows(ds, embed) if engine is None else engine.add(ds, [embed])
    given = {"references": references, "layer": layer, "columns": recipe.data.columns, "rows": embedded}
    scores = [make_score(method.name, method.options, **given) for method in recipe.methods]
    steps: list[Step] = [embed, *scores]
    if embedded is not None:
        scored = embedded
        for step in scores:
            scored = score_rows(scored, step)
    elif engine is None:
        scored = score_stream_here(ds, embed, scores)
    else:
        scored, streamed = _scored_by(engine, ds, steps, recipe)
    if recipe.decided_by == "rank_average":
        scored, rank = add_rank_average(scored, [score_column(method.name) for method in recipe.methods])
        steps.append(rank)
    return _decide(scored, recipe, steps, choice, source_revision, streamed)


def _references(recipe: Recipe) -> tuple[ReferenceIndex | None, LayerChoice | SafetyLayers | None]:
    """The reference index, if anything needs one, and how the layer was found, if that was left open."""
    wanted = any("references" in takes(method.name) for method in recipe.methods)
    if recipe.layer != "auto" or not _reads_a_layer(recipe):
        return load_references(recipe, [_named_layer(recipe)]) if wanted else None, None
    if (way := way_of(recipe, wanted)) != "references":
        found = searched(recipe, way)
        return load_references(recipe, [found.layer]) if wanted else None, found
    index = load_references(recipe, EmbedLayers.of(recipe.model, [0]).all_layers())
    named = tuple(method.name for method in recipe.methods if compares_with_references(method.name))
    choice = choose_layer(index, methods=named or ("larf",))
    if not choice.signal:
        raise DataError(
            "no layer of this model separates the unsafe references from the safe ones better than chance",
            found=f"best: layer {choice.layer}",
            fix="use other reference rows, or an aligned (instruction-tuned) model; or name the layer yourself",
        )
    return index, choice


def _reads_a_layer(recipe: Recipe) -> bool:
    return any("layer" in takes(method.name) for method in recipe.methods)


def _named_layer(recipe: Recipe) -> int | str:
    """The layer that the recipe names; the cheapest that can hold references, where no method reads one."""
    return 1 if recipe.layer == "auto" else recipe.layer


def load_references(recipe: Recipe, layers: Sequence[int | str]) -> ReferenceIndex:
    """The recipe's reference index: built from rows, or loaded and checked to come from the same model."""
    chosen = recipe.references
    embed = EmbedLayers.of(recipe.model, layers)
    if chosen.path == "starter":
        return ReferenceIndex.starter(embed)
    if chosen.path is None:
        unsafe, safe = load_rows(chosen.unsafe).rows, load_rows(chosen.safe).rows
        return ReferenceIndex.build(unsafe, safe, embed, license=chosen.license, source=chosen.source)
    index = open_references(chosen.path, chosen.revision)
    require_same_reading(index, embed)
    return index


def _decide(scored, recipe, steps, choice, source_revision, streamed) -> Purified:
    from hf_safefilter.decide.select import IsSafe, split
    from hf_safefilter.publish.gather import gather

    column = score_column(recipe.decided_by)
    threshold = decide_threshold(scored, column, recipe.select, steps)
    is_safe = IsSafe(column, threshold)
    parts = split(scored, is_safe)
    evaluation = None
    if recipe.evaluate is not None:
        from hf_safefilter.decide.evaluate import evaluate

        evaluation = evaluate(scored, recipe.evaluate.label, unsafe=recipe.evaluate.unsafe)
    provenance = gather(
        scored,
        is_safe,
        license=recipe.data.license,
        source=recipe.data.source,
        source_revision=source_revision,
        steps=steps,
        recipe=recipe.portable(),
        layer_choice=choice.to_json() if choice is not None else None,
        evaluation=evaluation.to_json() if evaluation is not None else None,
        witnesses=streamed.witnesses() if streamed is not None else None,
    )
    kept = parts.kept if streamed is None else streamed.kept(scored, is_safe, steps)
    return Purified(kept, parts.dropped, provenance.counts, provenance, scored, is_safe, choice, evaluation)


def _scored_by(engine: Engine, rows: Any, steps: Sequence[Step], recipe: Recipe) -> tuple[Any, StreamedScores | None]:
    """The rows with the columns of `steps` but for vectors; of a stream, only what a decision needs."""
    from datasets import IterableDataset, IterableDatasetDict

    if not isinstance(rows, (IterableDataset, IterableDatasetDict)):
        require_free(rows, [name for step in steps for name in step.produces()])
        vectors = [name for step in steps for name in step.produces() if name.startswith(EMBEDDING_PREFIX)]
        return engine.add(rows, steps, without=vectors), None
    from hf_safefilter.engine.streamed import score_stream

    labels = [recipe.select.label, recipe.evaluate.label if recipe.evaluate is not None else None]
    streamed = score_stream(engine, rows, steps, labels=labels, columns=recipe.data.columns)
    return streamed.scored, streamed
