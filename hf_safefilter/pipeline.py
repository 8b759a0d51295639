"""purify: one recipe from rows to the rows that are safe to tune on. Each stage is also a function of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.auto_layer import searched, way_of
from hf_safefilter.columns import EMBEDDING_PREFIX, TRUNCATED, UNSCORABLE, embedding_column, score_column
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.inputs import load_rows
from hf_safefilter.recipe import MethodChoice, Recipe, Selection
from hf_safefilter.step import ROWS_PER_CALL

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.choose import LayerChoice
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.engine import Engine
    from hf_safefilter.engine.streamed import Streamed
    from hf_safefilter.evaluation import Evaluation
    from hf_safefilter.locate.found import SafetyLayers
    from hf_safefilter.publish.provenance import Provenance
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.select import IsSafe
    from hf_safefilter.step import Step
    from hf_safefilter.thresholds import Threshold

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
    _require_rows(ds)
    references, choice = _references(recipe)
    layer = choice.layer if choice is not None else _named_layer(recipe)
    embed = embedder(recipe, [layer], recipe.data.columns)
    streaming = isinstance(ds, (IterableDataset, IterableDatasetDict))
    embedded = streamed = None
    if not streaming and (engine is None or _fitted_to_rows(recipe)):
        embedded = embed_rows(ds, embed) if engine is None else engine.add(ds, [embed])
    scores = [make_score(method, references, layer, recipe.data.columns, embedded) for method in recipe.methods]
    steps: list[Step] = [embed, *scores]
    if embedded is not None:
        scored = embedded
        for step in scores:
            scored = score_rows(scored, step)
    elif engine is None:
        scored = _stream_scored(ds, embed, scores)
    else:
        scored, streamed = _scored_by(engine, ds, steps, recipe)
    if recipe.decided_by == "rank_average":
        scored, rank = add_rank_average(scored, [score_column(method.name) for method in recipe.methods])
        steps.append(rank)
    return _decide(scored, recipe, steps, choice, source_revision, streamed)


def _require_rows(ds: Any) -> None:
    """Raise for a split without rows, to which `map` adds no column: a decision would miss its score in the end."""
    from datasets import Dataset

    for name, part in ds.items() if isinstance(ds, Mapping) else [(None, ds)]:
        if isinstance(part, Dataset) and not len(part):
            where = f"split {name!r} has no rows" if name is not None else "there are no rows"
            raise DataError(where, fix=f"leave it out: ds.pop({name!r})" if name is not None else "check the source")


def _fitted_to_rows(recipe: Recipe) -> bool:
    from hf_safefilter.scores import fitted_to

    return any(fitted_to(method.name, method.options) == "rows" for method in recipe.methods)


def embedder(recipe: Recipe, layers: Sequence[int | str], columns: Mapping[str, str] | None = None) -> EmbedLayers:
    """The step that reads `layers` of the recipe's model, for rows with these `columns`."""
    from hf_safefilter.embed import EmbedLayers

    model = recipe.model
    return EmbedLayers(
        model.name,
        layers,
        revision=model.revision,
        dtype=model.dtype,
        position=model.position,
        max_length=model.max_length,
        columns=columns,
        device=model.device,
        chat_template=model.chat_template,
        attn=model.attn,
    )


def _references(recipe: Recipe) -> tuple[ReferenceIndex | None, LayerChoice | SafetyLayers | None]:
    """The reference index, if anything needs one, and how the layer was found, if that was left open."""
    wanted = any("references" in options_of(method.name) for method in recipe.methods)
    if recipe.layer != "auto" or not _reads_a_layer(recipe):
        return load_references(recipe, [_named_layer(recipe)]) if wanted else None, None
    if (way := way_of(recipe, wanted)) != "references":
        found = searched(recipe, way)
        return load_references(recipe, [found.layer]) if wanted else None, found
    index = load_references(recipe, layers_of_model(embedder(recipe, [0])))
    from hf_safefilter.choose import COMPARABLE, choose_layer

    named = tuple(method.name for method in recipe.methods if method.name in COMPARABLE)
    choice = choose_layer(index, methods=named or ("larf",))
    if not choice.signal:
        raise DataError(
            "no layer of this model separates the unsafe references from the safe ones better than chance",
            found=f"best: layer {choice.layer}",
            fix="use other reference rows, or an aligned (instruction-tuned) model; or name the layer yourself",
        )
    return index, choice


def _reads_a_layer(recipe: Recipe) -> bool:
    return any("layer" in options_of(method.name) for method in recipe.methods)


def _named_layer(recipe: Recipe) -> int | str:
    """The layer that the recipe names; the cheapest that can hold references, where no method reads one."""
    return 1 if recipe.layer == "auto" else recipe.layer


def layers_of_model(embed: EmbedLayers) -> list[int]:
    """Layers 1..L of the model that `embed` reads: all that a block has worked on."""
    from hf_safefilter.model.load import ModelKey, model_config

    config = model_config(ModelKey(embed.model, embed.revision, embed.dtype)).get_text_config()
    return list(range(1, config.num_hidden_layers + 1))


def load_references(recipe: Recipe, layers: Sequence[int | str]) -> ReferenceIndex:
    """The recipe's reference index: built from rows, or loaded and checked to come from the same model."""
    from hf_safefilter.references import ReferenceIndex

    chosen = recipe.references
    embed = embedder(recipe, layers)
    if chosen.path == "starter":
        return ReferenceIndex.starter(embed)
    if chosen.path is None:
        unsafe, safe = load_rows(chosen.unsafe).rows, load_rows(chosen.safe).rows
        return ReferenceIndex.build(unsafe, safe, embed, license=chosen.license, source=chosen.source)
    index = open_references(chosen.path, chosen.revision)
    require_same_reading(index, embed)
    return index


def open_references(place: str | Path, revision: str | None = None) -> ReferenceIndex:
    """A reference index from a local folder or the Hub."""
    from hf_safefilter.references import ReferenceIndex

    return ReferenceIndex.load(place) if Path(place).is_dir() else ReferenceIndex.from_hub(str(place), revision)


def require_same_reading(index: ReferenceIndex, embed: EmbedLayers) -> None:
    """Raise unless the references were read as the rows will be: same model, commit, position, length and template."""
    ours = embed.describe()
    for name in ("model", "revision", "dtype", "position", "max_length", "chat_template_digest"):
        if index.embed.get(name) != ours.get(name):
            raise DataError(
                f"the references were read with another {name} than the rows will be",
                found=f"{index.embed.get(name)!r} against {ours.get(name)!r}",
                fix="build the references with this model: hf-safefilter reference build --help",
            )


def make_score(
    method: MethodChoice,
    references: ReferenceIndex | None,
    layer: int | str,
    columns: Mapping[str, str] | None,
    embedded: Dataset | DatasetDict | None,
) -> Step:
    """The step of a method; what is fitted to the rows or to references is fitted here."""
    from hf_safefilter.scores import fitted_to, make

    source = fitted_to(method.name, method.options)
    takes = _fields_of(method.name) | {source}
    given = {"references": references, "layer": layer, "columns": columns, "rows": embedded}
    options = {name: value for name, value in given.items() if name in takes} | method.options
    if source == "rows" and embedded is None:
        raise OptionError(
            f"{method.name} is fitted on all rows and cannot be used while streaming", fix="streaming: false"
        )
    if "references" in takes and references is None:
        raise OptionError(f"{method.name} compares with references", fix="say which: --references FOLDER")
    return make(method.name, **options)


def options_of(method: str) -> set[str]:
    """What a method takes: the fields of its step, and what that is fitted to."""
    from hf_safefilter.scores import fitted_to

    return _fields_of(method) | ({fitted_to(method, {})} - {None})


def _fields_of(method: str) -> set[str]:
    from hf_safefilter.scores import method as step_of

    return {field.name for field in fields(step_of(method))}  # type: ignore[arg-type]


def add_rank_average(scored: Dataset | DatasetDict, columns: Sequence[str]) -> tuple[Dataset | DatasetDict, Step]:
    """Add the mean of the rows' ranks over several scores."""
    from hf_safefilter.scores.rank_average import RankAverage, fit_rank_average

    step = RankAverage(fit_rank_average(scored, list(columns)))
    return score_rows(scored, step), step


def embed_rows(ds: Dataset | DatasetDict, embed: EmbedLayers, *, processes: int | None = None) -> Dataset | DatasetDict:
    """Add the columns of `embed`, here or in `processes`; raises rather than write over a column of the user's."""
    return _beside(ds, embed, "Embed", processes)


def score_rows(ds: Dataset | DatasetDict, step: Step) -> Dataset | DatasetDict:
    """Add the columns of a score."""
    return _beside(ds, step, type(step).__name__)


def _beside(ds: Dataset | DatasetDict, step: Step, desc: str, processes: int | None = None) -> Dataset | DatasetDict:
    """`ds.map(step)`, but that only the new columns are written: old ones, vectors among them, are not copied."""
    from datasets import DatasetDict, concatenate_datasets

    require_free(ds, step)
    if isinstance(ds, DatasetDict):
        return DatasetDict({name: _beside(part, step, desc, processes) for name, part in ds.items()})
    vectors = {name for name in ds.column_names if name.startswith(EMBEDDING_PREFIX)}
    read = list(step.needs()) or [name for name in ds.column_names if name not in vectors]
    # A selection of rows would have to be written out first; a missing column is the step's own to complain about.
    how = {"batched": True, "batch_size": ROWS_PER_CALL, "num_proc": processes, "with_rank": True, "desc": desc}
    if ds._indices is not None or not len(ds) or not set(read) <= set(ds.column_names):
        return ds.map(step, **how)
    added = ds.select_columns(read).map(step, remove_columns=read, **how)
    return concatenate_datasets([ds, added], axis=1, info=None, split=ds.split)


def require_free(ds: Any, step: Step) -> None:
    """Raise unless the columns that `step` adds are not there yet."""
    from hf_safefilter.engine.streamed import names_of

    parts = ds.values() if isinstance(ds, Mapping) else [ds]
    taken = sorted({name for part in parts for name in names_of(part)} & set(step.produces()))
    if taken:
        raise DataError(
            f"the rows already have a column {taken[0]!r}", fix="rename or remove it: it would be written over"
        )


def reasons(ds: Dataset | DatasetDict) -> dict[str, int]:
    """How many rows were read, cut, and could not be read, by reason."""
    parts = list(ds.values()) if isinstance(ds, Mapping) else [ds]
    counts = {"rows": sum(len(part) for part in parts), "truncated": 0}
    for part in parts:
        if len(part):
            counts["truncated"] += sum(part.with_format("arrow")[TRUNCATED].to_pylist())
            for reason in part.with_format("arrow")[UNSCORABLE].to_pylist():
                if reason:
                    counts[f"unscorable: {reason}"] = counts.get(f"unscorable: {reason}", 0) + 1
    return counts


def _stream_scored(rows: IterableDataset, embed: EmbedLayers, scores: Sequence[Step]) -> Dataset:
    """Embed and score row group by row group, and lay the rows down on disk without their vectors.

    The decision needs every score, but no vector: this is what lets a set larger than memory and cache through.
    """
    from hf_safefilter.select import materialise

    steps = (embed, *scores)
    for step in steps:
        require_free(rows, step)
    rows = rows.with_format("arrow")  # as Python values, a null does not say what type its column is of
    for step in steps:
        rows = rows.map(step, batched=True, batch_size=ROWS_PER_CALL)
    return materialise(rows.remove_columns([embedding_column(layer) for layer in embed.layers]))


def _scored_by(engine: Engine, rows: Any, steps: Sequence[Step], recipe: Recipe) -> tuple[Any, Streamed | None]:
    """The rows with the columns of `steps` but for vectors; of a stream, only what a decision needs."""
    from datasets import IterableDataset, IterableDatasetDict

    if not isinstance(rows, (IterableDataset, IterableDatasetDict)):
        for step in steps:
            require_free(rows, step)
        vectors = [name for step in steps for name in step.produces() if name.startswith(EMBEDDING_PREFIX)]
        return engine.add(rows, steps, without=vectors), None
    from hf_safefilter.engine.streamed import score_stream

    labels = [recipe.select.label, recipe.evaluate.label if recipe.evaluate is not None else None]
    streamed = score_stream(engine, rows, steps, labels=labels, columns=recipe.data.columns)
    return streamed.scored, streamed


def _decide(scored, recipe, steps, choice, source_revision, streamed) -> Purified:
    from hf_safefilter.publish.gather import gather
    from hf_safefilter.select import IsSafe, split

    column = score_column(recipe.decided_by)
    threshold = decide_threshold(scored, column, recipe.select, steps)
    is_safe = IsSafe(column, threshold)
    parts = split(scored, is_safe)
    evaluation = None
    if recipe.evaluate is not None:
        from hf_safefilter.evaluation import evaluate

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


def decide_threshold(scored: Dataset | DatasetDict, column: str, rule: Selection, steps: Sequence[Step]) -> Threshold:
    """The threshold that `rule` asks for; rows known to be good are scored by the same `steps` first."""
    from hf_safefilter.select import threshold_for

    options = rule.model_dump(exclude_none=True, exclude={"by"})
    if rule.label is None:
        options.pop("unsafe")
    if rule.known_good is not None:
        good = load_rows(rule.known_good).rows
        for step in steps:
            good = score_rows(good, step)
        options["known_good"] = good
    return threshold_for(scored, column, **options)
