"""score: add the score column of one method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli import completion
from hf_safefilter.cli.arguments import Output, TrustVectors, layers_of, values_of
from hf_safefilter.columns import answer_key
from hf_safefilter.errors import OptionError
from hf_safefilter.scores import COMBINED, METHODS, make_score, takes

if TYPE_CHECKING:
    from hf_safefilter.columns import Layer
    from hf_safefilter.data.load_rows import Loaded
    from hf_safefilter.saved.saved_rows import Saved

EXAMPLE = "hf-safefilter score embedded --method larf --layer 4 --references refs --output scored"

SCORES = tuple(METHODS)


def score(
    context: typer.Context,
    embedded: Annotated[
        Path, typer.Argument(help="Folder written by an earlier command; or any rows, for guard, length and random.")
    ],
    method: Annotated[
        str, typer.Option(help=f"{', '.join(SCORES[:-1])} or {SCORES[-1]}.", autocompletion=completion.methods)
    ],
    output: Output,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Embedded layer to use, the only one if left out; for probe and ensemble several, all if left out.",
            autocompletion=completion.layers,
        ),
    ] = None,
    references: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a reference set; starter for the one that ships here.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of the method, e.g. --option k=5; for largest_deviation --option of=ensemble,shift."),
    ] = None,
    trust_vectors: TrustVectors = False,
) -> None:
    """Add the score column of one method."""
    from hf_safefilter.decide.overlap import warn_of_overlap
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.engine.local import add_ranks, score_rows
    from hf_safefilter.references.open import open_references, require_same_reading
    from hf_safefilter.saved.saved_rows import TRAIL, save_rows
    from hf_safefilter.storage.atomic import require_replaceable

    require_replaceable(output, TRAIL)
    named, options = (
        layers_of(layer, "--layer", shifts=True) if layer is not None else None,
        values_of(option, "--option"),
    )
    several = "layers" in takes(method)
    reads_vectors = several or "layer" in takes(method)
    loaded, saved = _saved(embedded, reads_vectors, trust_vectors)
    reader = next((step for step in saved.steps if isinstance(step, EmbedLayers)), None)
    if reader is None and reads_vectors:
        raise OptionError(f"{embedded} holds no embeddings", fix="start with: hf-safefilter embed --help")
    layers = _layers(named, reader.layers, several) if reads_vectors and reader is not None else (0,)
    index = open_references(references, embed=reader) if references is not None else None
    if index is not None and reader is not None:
        require_same_reading(index, reader)
    if method in COMBINED and "ranks" not in options:
        scored, step = add_ranks(saved.rows, _ranked(saved, options), method)
    else:
        step = make_score(method, options, references=index, layer=layers[0], layers=layers, columns=saved.mapping,
                          rows=saved.rows)  # fmt: skip
        scored = score_rows(saved.rows, step)
    warn_of_overlap(scored, [step])
    source = saved if loaded is None else loaded
    save_rows(
        scored, output, [*saved.steps, step], name=saved.name, revision=saved.revision, trusted=saved.trusted,
        recheck=source.require_unchanged,
    )  # fmt: skip
    column = step.produces()[0]
    context.obj.report(
        {"output": str(output), "column": column, **step.spent()},
        ids=[str(output)],
        hint=f"hf-safefilter select {output} --by {column} --drop-fraction 0.02 --output decided",
    )


def _ranked(saved: Saved, options: dict[str, Any]) -> list[str]:
    """The score columns whose ranks are combined: those of the methods in the option `of`, or all that there are."""
    from hf_safefilter.columns import score_column
    from hf_safefilter.scores.base import Score
    from hf_safefilter.scores.controls import LengthScore, RandomScore
    from hf_safefilter.scores.ranks import RankScore

    steps = [step for step in saved.steps if isinstance(step, Score)]
    present = [step.produces()[0] for step in steps if not isinstance(step, (LengthScore, RandomScore, RankScore))]
    of = options.pop("of", present)
    named = [str(name) for name in of] if isinstance(of, list) else str(of).split(",")
    columns = [name if name in present else score_column(name) for name in map(str.strip, named)]
    missing = [name for name in columns if name not in present]
    if options or missing or len(set(columns)) < max(2, len(columns)):
        raise OptionError(
            f"ranks are combined of two scores or more that {saved.name} has",
            found=", ".join(present) or "no scores",
            fix="score the rows by two methods, then for example --option of=ensemble,shift",
        )
    return columns


def _saved(folder: Path, reads_vectors: bool, trust_vectors: bool) -> tuple[Loaded | None, Saved]:
    """Rows of an earlier command; any rows, for a method that reads the text itself, and as they were loaded."""
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.saved.saved_rows import TRAIL, Saved, load_rows_with_steps

    if reads_vectors or (folder / TRAIL).is_file():
        return None, load_rows_with_steps(folder, trust_vectors=trust_vectors)
    loaded = load_rows(str(folder))
    return loaded, Saved(loaded.rows, [], loaded.name, loaded.revision)


def _layers(named: list[Layer] | None, embedded: tuple[Layer, ...], several: bool) -> tuple[Layer, ...]:
    names = ", ".join(map(str, embedded))
    layers = embedded if named is None else tuple(named)
    if len(layers) > 1 and not several:
        fact = "several layers are embedded" if named is None else f"--layer {','.join(map(str, named))} names several"
        raise OptionError(fact, found=names, fix="name one of these with --layer")
    for layer in layers:
        if answer_key(layer) not in embedded:
            raise OptionError(f"layer {layer} is not embedded", found=names, fix="embed it, or name one of these")
    return layers
