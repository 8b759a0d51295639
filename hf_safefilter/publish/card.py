"""The card: README.md with its metadata, rendered from a `Provenance`; the user's own text in a card is kept."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml

from hf_safefilter.errors import IntegrityError, PublishError
from hf_safefilter.publish.data_files import Published, SplitSize
from hf_safefilter.publish.plots import shares_drawn
from hf_safefilter.publish.provenance import Provenance

BEGIN = "<!-- hf_safefilter: begin; what stands between these two lines is written anew at each push -->"
END = "<!-- hf_safefilter: end -->"
_OURS = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
_UNNAMED = "OWNER/NAME"
_NAMED = re.compile(r"`hf-safefilter verify (\S+) --source")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def render(
    provenance: Provenance,
    published: Published | None,
    *,
    existing: str | None = None,
    text_included: bool = False,
    repository: str = _UNNAMED,
) -> str:
    """README.md of a published data set.

    Args:
        provenance: The facts to state.
        published: Features, rows and bytes of the data files; None: what the existing card states about them is kept.
        existing: The README.md of the repository. Its text outside our part and its metadata under other keys than
            ours are kept.
        text_included: Whether ``dropped.parquet`` holds the text of the dropped rows.
        repository: The repository of the card, for the commands that it shows.

    Raises:
        PublishError: The metadata of the existing card are not YAML.
        IntegrityError: The record is not one that this program has written.
    """
    metadata, text = _parsed(existing) if existing else ({}, None)
    ours = _body(provenance, text_included, repository)
    if text is None:
        body = f"# {_escape(provenance.source.name)}, filtered for safety\n\n{ours}\n"
    elif _OURS.search(text):
        body = _OURS.sub(lambda _: ours, text, count=1)
    else:
        body = f"{text.rstrip()}\n\n{ours}\n"
    head = yaml.safe_dump(_metadata(provenance, published, metadata), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n{body if body.startswith(chr(10)) else chr(10) + body}"


def stated_in(
    card: str, provenance: Provenance, published: Published, *, text_included: bool, repository: str | None = None
) -> bool:
    """Whether our part of a card and our metadata are what `render` makes of a record, for this repository or none yet.

    Without a repository, for the one that the card names: a folder may have been downloaded.

    Raises:
        PublishError: The metadata of the card are not YAML.
    """
    metadata, _ = _parsed(card)
    expected = yaml.safe_load(yaml.safe_dump(_metadata(provenance, published, {})))
    if "safefilter" not in metadata.get("tags", ()) or any(
        metadata.get(key) != value for key, value in expected.items() if key != "tags"
    ):
        return False
    ours = _OURS.search(card)
    if ours is None:
        return False
    named = _NAMED.search(ours[0]) if repository is None else None
    own = re.sub(r"\\(.)", r"\1", named[1]) if named is not None else repository
    names = [name for name in (own, _UNNAMED) if name is not None and _REPO.fullmatch(name)]
    return any(ours[0] == _body(provenance, text_included, name) for name in names)


def _parsed(card: str) -> tuple[dict[str, Any], str]:
    """The metadata of a card, and its text."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK  # by which the Hub itself finds the metadata

    block = REGEX_YAML_BLOCK.search(card)
    if block is None:
        return {}, card
    try:
        metadata = yaml.safe_load(block.group(2)) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PublishError("the metadata of the existing card are not YAML", fix="correct its first lines") from error
    if not isinstance(metadata, dict):
        raise PublishError("the metadata of the existing card are not a mapping", fix="correct its first lines")
    return metadata, card[block.end() :]


def splits_in(card: str | None) -> dict[str, SplitSize]:
    """The splits that an existing card lists, with their sizes."""
    metadata, _ = _parsed(card) if card else ({}, "")
    info = metadata.get("dataset_info")
    listed = info.get("splits") if isinstance(info, dict) else None
    sizes = {}
    for split in listed if isinstance(listed, list) else ():
        if isinstance(split, dict) and "name" in split:
            rows, size = (split.get(key) for key in ("num_examples", "num_bytes"))
            sizes[str(split["name"])] = SplitSize(
                rows if isinstance(rows, int) else 0, size if isinstance(size, int) else 0, 0
            )
    return sizes


def _metadata(provenance: Provenance, published: Published | None, existing: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the card: ours, and the existing ones under other keys."""
    name = provenance.source.name
    tagged = existing.get("tags")
    tags = [tag for tag in tagged if tag != "safefilter"] if isinstance(tagged, list) else []
    ours: dict[str, Any] = {"license": provenance.source.license, "tags": [*tags, "safefilter"]}
    if _REPO.fullmatch(name) and re.fullmatch(r"[0-9a-f]{40}", provenance.source.revision or ""):
        ours["source_datasets"] = [name]
    if published is not None:
        ours |= _data_metadata(published)
    ours["safefilter"] = {
        "tool": provenance.tool,
        "column": provenance.selection.column,
        "threshold": provenance.selection.threshold,
        "references": [references["digest"] for references in provenance.references],
    }
    if provenance.recipe is not None:
        ours["safefilter"]["recipe"] = provenance.recipe
    return {**{key: value for key, value in existing.items() if key not in ours}, **ours}


def _data_metadata(published: Published) -> dict[str, Any]:
    """The metadata of the data files."""
    ours: dict[str, Any] = {}
    ours["size_categories"] = [_size_category(sum(split.rows for split in published.splits.values()))]
    ours["configs"] = [
        {
            "config_name": "default",
            "data_files": [{"split": split, "path": f"data/{split}-*"} for split in published.splits],
        }
    ]
    ours["dataset_info"] = {
        "features": published.features._to_yaml_list(),
        "splits": [
            {"name": split, "num_bytes": size.bytes, "num_examples": size.rows}
            for split, size in published.splits.items()
        ],
        "download_size": sum(size.download for size in published.splits.values()),
        "dataset_size": sum(size.bytes for size in published.splits.values()),
    }
    return ours


def _size_category(rows: int) -> str:
    sizes = [(1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")]
    return next((name for bound, name in sizes if rows < bound), "n>10M")


def _body(provenance: Provenance, text_included: bool, repository: str) -> str:
    from jinja2 import TemplateError

    facts = _escaped(provenance.to_dict())
    counts = facts["counts"]
    by, drawn = shares_drawn(provenance.counts)
    titles = (("split", "by_split"), ("source", "by_source"), ("category", "by_category"))
    try:
        text = _template().render(
            facts,
            begin=BEGIN,
            end=END,
            repository=_escape(repository),
            tables=[(title, counts[key]) for title, key in titles if counts[key]],
            shares_by=by,
            drawn=len(drawn),
            labelled_rule="labelled rows" in provenance.selection.rule,
            text_included=text_included,
            own_model=provenance.written_by_its_own_model(),
            number=_number,
            percent=lambda share: f"{share['dropped'] / share['rows']:.1%}" if share["rows"] else "",
            options=_options,
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:  # of a record from elsewhere
        raise IntegrityError(
            "provenance.json does not hold what a card states",
            found=f"{type(error).__name__}: {error}"[:200],
            fix="write the folder again",
        ) from error
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _number(value: float) -> str:
    return f"{value:.4g}"


def _options(step: Mapping[str, Any]) -> str:
    options = {name: value for name, value in step.items() if name != "step" and value is not None}
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()
    )


@lru_cache(maxsize=1)
def _template() -> Any:
    from importlib.resources import files

    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["shown"] = _number
    return environment.from_string((files("hf_safefilter") / "cards" / "dataset.md.j2").read_text(encoding="utf-8"))


def _escaped(value: Any) -> Any:
    """The record with every string and key escaped: no HTML, no Markdown, no line breaks."""
    if isinstance(value, dict):
        return {_escape(str(key)): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return _escape(value) if isinstance(value, str) else value


def _escape(text: str) -> str:
    # Digests, columns and versions need no escaping, and are easier to read without; names from data may hold anything.
    if re.fullmatch(r"[\w.:/ ,%+<>=-]*", text) and "<" not in text and ">" not in text and "__" not in text:
        return text
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))
