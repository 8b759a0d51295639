"""purify: a recipe is carried out, from rows to the rows that are safe to tune on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_safefilter.columns import EMBEDDING_PREFIX, Layer, score_column
from hf_safefilter.data.load_rows import Loaded, load_rows
from hf_safefilter.data.shapes import with_ignored
from hf_safefilter.data.splits import (
    column_names,
    joined,
    missing_column,
    parts_of,
    require_free,
    require_rows,
    splits_of,
)
from hf_safefilter.decide.thresholds import labels_of
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.engine.local import (
    add_ranks,
    embed_rows,
    score_rows,
    score_stream_locally,
    warn_of_unscorable,
)
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.choose_reading import PROBE, ReadingChoice, choose_reading, goes_by_references, middle_layers
from hf_safefilter.pipeline.auto_layer import layer_method_of, search_layers
from hf_safefilter.pipeline.by_people import ByPeople, choose_additions
from hf_safefilter.pipeline.decision_rule import decide_threshold
from hf_safefilter.recipe import MethodChoice, Recipe
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.open import STARTER, build_references, open_references, require_same_reading
from hf_safefilter.scores import COMBINED, fitted_to, make_score, takes
from hf_safefilter.scores.shift import at_prompt_too

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.decide.additions import Additions
    from hf_safefilter.decide.evaluate import Evaluation
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.decide.verdict import Verdict
    from hf_safefilter.engine import Engine
    from hf_safefilter.engine.streamed import StreamedScores
    from hf_safefilter.locate.safety_layers import SafetyLayers
    from hf_safefilter.model.reading_options import ReadingOptions
    from hf_safefilter.publish.provenance import Counts, Provenance
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Purified:
    """The result of `purify`.

    Attributes:
        kept: Rows that may be tuned on, with the columns that were added; a stream if an engine scored a stream.
        dropped: The other rows.
        counts: Number of rows in, kept, dropped, and dropped by reason.
        provenance: Everything that a card states.
        scored: The rows with their score columns, before the decision. For a stream that an engine scored, `scored` and
            `dropped` hold ids, scores and reasons, and not the rows themselves.
        is_safe: The decision.
        layer_choice: How the reading was chosen, if the recipe has ``layer: auto``.
        evaluation: How well each score separates the labels, if the recipe names some.
        additions: Rows that were added to the kept ones, at the end of their split.
        verdict: What is known of the deciding score, by the labels, or else by its references and the rows' lengths.
        source: What `purify` has loaded the rows from, and they are still read from; None if they were passed to it.
        steps: The steps that gave `scored` its columns, in order.
    """

    kept: Dataset | DatasetDict | IterableDataset | IterableDatasetDict
    dropped: Dataset | DatasetDict
    counts: Counts
    provenance: Provenance
    scored: Dataset | DatasetDict
    is_safe: IsSafe
    layer_choice: ReadingChoice | SafetyLayers | None
    evaluation: Evaluation | None
    verdict: Verdict
    additions: Additions | None = None
    source: Loaded | None = None
    steps: Sequence[Step] = ()


def purify(
    ds: Dataset | DatasetDict | IterableDataset | None,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    source_revision: str | None = None,
    engine: Engine | None = None,
    anyway: bool = False,
) -> Purified:
    """Embed the rows, score them, decide which to keep and describe the result, as the recipe states.

    Args:
        ds: The rows; None for those at ``data.path`` of the recipe.
        recipe: A `Recipe`, a mapping, or the path of a YAML file.
        source_revision: Commit or digest of `ds`, if the caller loaded it.
        engine: Where rows are embedded and scored, e.g. a `RayEngine`; None for this process. An engine stores vectors
            only if a method is fitted to them. It never stores a stream: the stream is read again when `kept` is read.
        anyway: Whether the rows are to be published in spite of a bad verdict, which the provenance then states.

    Raises:
        SafefilterError: What the stages raise; nothing is written, and `ds` is never changed.
    """
    from datasets import IterableDataset, IterableDatasetDict

    recipe = Recipe.read(recipe)
    loaded = None
    if ds is None:
        data = recipe.data
        if data.path is None:
            raise OptionError("the recipe has no data.path, and no rows were passed", fix="add data.path")
        loaded = load_rows(
            data.path, config=data.config, split=data.split, revision=data.revision, streaming=data.streaming
        )
        ds, source_revision = loaded.rows, loaded.revision
    require_rows(ds)
    streaming = isinstance(ds, (IterableDataset, IterableDatasetDict))
    by_people = ByPeople.of(recipe, streamed=streaming)
    _require_labels(ds, recipe)
    references, choice = _references(recipe)
    layers = {method.name: _layers(method, recipe, choice) for method in recipe.methods}
    read = sorted({layer for of_method in layers.values() for layer in of_method}, key=_depth)
    embed = EmbedLayers.of(_reading(recipe), read, recipe.data.columns)
    embedded = streamed = None
    if not streaming and (engine is None or any(fitted_to(m.name, m.options) == "rows" for m in recipe.methods)):
        embedded = embed_rows(ds, embed) if engine is None else engine.add(ds, [embed])
    columns = embed.mapping
    scores = [
        make_score(
            method.name,
            _with_pairs(method, recipe),
            references=references,
            layer=layers[method.name][0],
            layers=layers[method.name],
            columns=columns,
            rows=embedded,
        )
        for method in recipe.methods
    ]
    steps: list[Step] = [embed, *scores]
    if embedded is not None:
        scored = embedded
        for step in scores:
            scored = score_rows(scored, step)
    elif engine is None:
        scored = score_stream_locally(ds, embed, scores)
    else:
        scored, streamed = _scored_by(engine, ds, steps, recipe)
    if recipe.decided_by in COMBINED:
        scored, rank = add_ranks(scored, [score_column(method.name) for method in recipe.methods], recipe.decided_by)
        steps.append(rank)
    purified = _decide(scored, recipe, steps, choice, by_people, source_revision, streamed, anyway)
    if loaded is not None:
        loaded.require_unchanged()
    return replace(purified, source=loaded, steps=tuple(steps))


def _require_labels(ds: Any, recipe: Recipe) -> None:
    """Raise before the rows are embedded, not after it, if labels that the recipe names are not there.

    Raises:
        MissingError: There is no such column.
        DataError: There are not labels of both kinds; of a stream this is seen when it has been read.
    """
    for labels in (recipe.select, recipe.evaluate):
        if labels is None or labels.label is None:
            continue
        for part in parts_of(ds):
            if labels.label not in (names := column_names(part)):
                raise missing_column(labels.label, names, "name the column that holds labels")
        if all(hasattr(part, "__len__") for part in parts_of(ds)):
            labels_of(ds, labels.label, labels.unsafe)


def _layers(method: MethodChoice, recipe: Recipe, choice: ReadingChoice | SafetyLayers | None) -> tuple[Layer, ...]:
    """The layers that a method reads."""
    if isinstance(choice, ReadingChoice):
        found = choice.layers_of(method.name)
        return found if "layers" in takes(method.name) else (found[len(found) // 2],)
    return (choice.layer if choice is not None else _named_layer(recipe),)


def _depth(layer: Layer) -> float:
    return layer if isinstance(layer, int) else float("inf")


def _reading(recipe: Recipe) -> ReadingOptions:
    """How the model is read: at the end of the prompt too, if a method compares answers with it."""
    return at_prompt_too(recipe.model, [method.name for method in recipe.methods])


def _references(recipe: Recipe) -> tuple[ReferenceIndex | None, ReadingChoice | SafetyLayers | None]:
    """The reference index, if a method needs one, and how the layer was found, if the recipe does not name one."""
    compares = any("references" in takes(method.name) for method in recipe.methods)
    if recipe.layer != "auto" or not _reads_a_layer(recipe):
        return load_references(recipe, [_named_layer(recipe)]) if compares else None, None
    layer_method = layer_method_of(recipe, compares)
    if layer_method != "references":
        layers = search_layers(recipe, layer_method)
        return load_references(recipe, [layers.layer]) if compares else None, layers
    n_blocks = len(EmbedLayers.of(recipe.model, [0]).all_layers())
    index = load_references(recipe, middle_layers(n_blocks))
    names = tuple(method.name for method in recipe.methods if goes_by_references(method.name))
    choice = choose_reading(index, methods=names or (PROBE,))
    if not choice.signal:
        raise DataError(
            "no layer of this model tells harmful requests answered from the same requests refused",
            found=choice.how,
            fix="use other reference rows, or an aligned (instruction-tuned) model, or name the layer yourself",
        )
    return index, choice


def _with_pairs(method: MethodChoice, recipe: Recipe) -> dict[str, Any]:
    """The options of a method, with columns for both sides of preference pairs if the decision needs them.

    Raises:
        OptionError: The method does not tell the sides apart.
    """
    if recipe.select.on != "pair_shift" or method.name != recipe.decided_by:
        return method.options
    if "pairs" not in takes(method.name):
        raise OptionError(
            f"{method.name} does not score both sides of a pair", fix="decide by a score of vectors, such as larf"
        )
    return method.options | {"pairs": True}


def _reads_a_layer(recipe: Recipe) -> bool:
    return any({"layer", "layers"} & takes(method.name) for method in recipe.methods)


def _named_layer(recipe: Recipe) -> Layer:
    """The layer that the recipe names; the cheapest that can hold references, if no method reads a layer."""
    return 1 if recipe.layer == "auto" else recipe.layer


def load_references(recipe: Recipe, layers: Sequence[Layer]) -> ReferenceIndex:
    """The recipe's reference index: built from rows, or loaded and checked to come from the same model."""
    choice = recipe.references
    embed = EmbedLayers.of(_reading(recipe), layers)
    if choice.path == STARTER:
        return ReferenceIndex.starter(embed, choice.trait)
    if choice.path is None:
        rows = cast("dict[str, str]", choice.model_dump())  # without a path, the recipe requires all of these
        return build_references(
            rows["unsafe"], rows["safe"], choice.benign, embed, license=rows["license"], source=rows["source"]
        )
    index = open_references(choice.path, choice.revision)
    require_same_reading(index, embed)
    return index


def _decide(
    scored: Dataset | DatasetDict,
    recipe: Recipe,
    steps: Sequence[Step],
    choice: ReadingChoice | SafetyLayers | None,
    by_people: ByPeople,
    source_revision: str | None,
    streamed: StreamedScores | None,
    anyway: bool,
) -> Purified:
    from hf_safefilter.decide.overlap import apart_from_references, warn_of_overlap
    from hf_safefilter.decide.select import IsSafe, split
    from hf_safefilter.publish.gather import gather

    warn_of_unscorable(scored)
    warn_of_overlap(scored, steps)
    column = recipe.decided_column
    threshold = decide_threshold(scored, column, recipe.select, steps)
    changes = recipe.select.action != "drop" or by_people.decisions is not None
    columns = with_ignored(recipe.data.columns, recipe.model.ignored) if changes else None
    is_safe = IsSafe(column, threshold, action=recipe.select.action, columns=columns, decisions=by_people.decisions)
    parts = split(scored, is_safe)
    additions = choose_additions(by_people.refusals, scored, is_safe, steps)
    evaluation = verdict = None
    mapping = next((step.mapping for step in steps if isinstance(step, EmbedLayers)), None)
    if recipe.evaluate is not None:
        from hf_safefilter.decide.evaluate import evaluate

        measured = apart_from_references(scored, steps)
        evaluation = evaluate(measured, recipe.evaluate.label, unsafe=recipe.evaluate.unsafe, columns=mapping)
        verdict = evaluation.verdict_on(column)
    labels = recipe.evaluate or recipe.select
    if verdict is None and labels.label is not None:
        from hf_safefilter.decide.evaluate import verdict_by_labels

        measured = apart_from_references(scored, steps)
        verdict = verdict_by_labels(measured, column, labels.label, labels.unsafe, mapping)
    provenance = gather(
        scored,
        is_safe,
        license=recipe.data.license,
        source=recipe.data.source,
        source_revision=source_revision,
        generator_model=recipe.data.generator_model,
        steps=steps,
        recipe=recipe.portable(),
        layer_choice=choice.to_json() if choice is not None else None,
        evaluation=evaluation.to_json() if evaluation is not None else None,
        verdict=verdict,
        anyway=anyway,
        name_reviewers=recipe.select.name_reviewers,
        additions=additions,
        samples=streamed.samples() if streamed is not None else None,
    )
    verdict = provenance.judged()
    assert verdict is not None  # `gather` gives one
    kept = parts.kept if streamed is None else streamed.kept(scored, is_safe, steps)
    if additions is not None:
        kept = joined(additions.appended_to(splits_of(kept)))
    return Purified(
        kept, parts.dropped, provenance.counts, provenance, scored, is_safe, choice, evaluation, verdict, additions
    )


def _scored_by(
    engine: Engine, rows: Dataset | DatasetDict | IterableDataset, steps: Sequence[Step], recipe: Recipe
) -> tuple[Dataset | DatasetDict, StreamedScores | None]:
    """The rows with the columns of `steps` except vectors; for a stream, only what a decision needs."""
    from datasets import IterableDataset, IterableDatasetDict

    if not isinstance(rows, (IterableDataset, IterableDatasetDict)):
        require_free(rows, [name for step in steps for name in step.produces()])
        vectors = [name for step in steps for name in step.produces() if name.startswith(EMBEDDING_PREFIX)]
        return engine.add(rows, steps, without=vectors), None
    from hf_safefilter.engine.streamed import score_stream

    labels = [recipe.select.label, recipe.evaluate.label if recipe.evaluate is not None else None]
    columns = with_ignored(recipe.data.columns, recipe.model.ignored)
    streamed = score_stream(engine, rows, steps, labels=labels, columns=columns)
    return streamed.scored, streamed
