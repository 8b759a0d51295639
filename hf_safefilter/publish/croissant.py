"""croissant.json: the published files, their sha256 and their origin, in the Croissant 1.1 format of MLCommons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import IntegrityError
from hf_safefilter.publish.review_facts import RULINGS
from hf_safefilter.publish.scoring import scoring_files
from hf_safefilter.storage.artifacts import file_sha256

if TYPE_CHECKING:
    from hf_safefilter.publish.data_files import Published
    from hf_safefilter.publish.provenance import Provenance

RECORD = "croissant.json"

TEXTS = ("README.md", "provenance.json")
"""What is described beside the data files. A push writes both anew, for its repository."""

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "arrayShape": "cr:arrayShape",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "samplingRate": "cr:samplingRate",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_FORMATS = {
    ".parquet": "application/x-parquet", ".json": "application/json", ".png": "image/png", ".svg": "image/svg+xml",
    ".md": "text/markdown",
}  # fmt: skip
_KINDS = {"string": "sc:Text", "large_string": "sc:Text", "bool": "sc:Boolean"}


def croissant(
    provenance: Provenance, published: Published, folder: Path, instead: Mapping[str, bytes] | None = None
) -> str:
    """The text of the Croissant record of a folder that already holds everything else.

    Columns of plain values and of lists of them are described as fields; nested columns are in the files only.

    Args:
        provenance: The record of the rows.
        published: Features and sizes of the shards.
        folder: The folder.
        instead: Name -> content of `TEXTS` that are published in place of those in the folder.
    """
    record = _record(provenance, published, folder, instead or {})
    return json.dumps(record, indent=2) + "\n"


def _record(provenance: Provenance, published: Published, folder: Path, instead: Mapping[str, bytes]) -> dict[str, Any]:
    files = _data_files(folder)
    texts = [name for name in TEXTS if name in instead or (folder / name).is_file()]
    counts, selection = provenance.counts, provenance.selection
    activity = (
        f"dropped {counts.dropped} of {counts.rows} rows: {selection.column} below {selection.threshold!r} was kept"
    )
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": f"{provenance.source.name}, filtered for safety",
        "description": f"The rows of {provenance.source.name} that {provenance.tool} kept. It {activity}.",
        "license": provenance.source.license,
        "datePublished": provenance.created,
        "version": "1.0.0",
        "rai:dataPreprocessingProtocol": [f"{activity}; {selection.rule}"],
        "rai:dataLimitations": ["A score is evidence, not proof: rows that weaken refusals may remain."],
        "prov:wasDerivedFrom": _entity(provenance.source.name, provenance.source.revision),
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": "filtering for safety",
            "prov:used": [
                *([_entity(provenance.model["model"], provenance.model["revision"])] if provenance.model else []),
                *(_entity(references["source"], references["digest"]) for references in provenance.references),
            ],
            "prov:wasAssociatedWith": {"@type": "prov:SoftwareAgent", "prov:label": provenance.tool},
        },
        "distribution": [*(_file(path, folder) for path in files), *(_text(name, folder, instead) for name in texts)],
        "recordSet": [_records(split, published, files, folder) for split in published.splits],
    }


def require_described(folder: Path) -> None:
    """Raise unless each data file of a folder is the one that its Croissant record describes, and none is missing.

    Raises:
        IntegrityError: A file is another than the one that is described, is missing, or is not described.
    """
    described = described_in(folder)
    present = {path.relative_to(folder).as_posix(): path for path in _data_files(folder) if path.is_file()}
    for name in sorted({*described, *present} - {*TEXTS}):
        if name not in present:
            raise IntegrityError(f"{name} is missing, which {RECORD} describes", fix="write the folder again")
        if name not in described:
            raise IntegrityError(f"{name} was added: {RECORD} does not describe it", fix="write the folder again")
        if file_sha256(present[name]) != described[name]:
            raise IntegrityError(f"{name} is not the file that {RECORD} describes", fix="write the folder again")


def described_in(folder: Path) -> dict[str, str]:
    """Name -> sha256 of each file that the Croissant record of a folder describes.

    Raises:
        IntegrityError: There is no such record.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {str(entry["name"]): str(entry["sha256"]) for entry in record["distribution"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{folder / RECORD} is missing or damaged", fix="write the folder again") from error


def _data_files(folder: Path) -> list[Path]:
    others = [folder / "dropped.parquet", folder / RULINGS, *sorted((folder / "plots").glob("*"))]
    data = [*sorted((folder / "data").glob("*.parquet")), *(path for path in others if path.exists())]
    return [*data, *scoring_files(folder)]


def _entity(name: str, version: str | None) -> dict[str, Any]:
    return {"@type": "prov:Entity", "prov:label": name} | ({"prov:value": version} if version else {})


def _file(path: Path, folder: Path) -> dict[str, Any]:
    return _file_object(path.relative_to(folder).as_posix(), path.stat().st_size, file_sha256(path))


def _text(name: str, folder: Path, instead: Mapping[str, bytes]) -> dict[str, Any]:
    content = instead[name] if name in instead else (folder / name).read_bytes()
    return _file_object(name, len(content), sha256(content).hexdigest())


def _file_object(name: str, size: int, digest: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": _FORMATS.get(Path(name).suffix, "application/octet-stream"),
        "sha256": digest,
    }


def _records(split: str, published: Published, shards: list[Path], folder: Path) -> dict[str, Any]:
    """The record set of a split: its fields, each with the column it is read from."""
    own = [path for path in shards if path.name.startswith(f"{split}-")]
    fields = []
    for name, feature in published.features.items():
        kind, is_list = _kind(feature)
        if kind is None:
            continue
        field = {
            "@type": "cr:Field",
            "@id": f"{split}/{name}",
            "name": f"{split}/{name}",
            "dataType": kind,
            "source": {"fileObject": {"@id": own[0].relative_to(folder).as_posix()}, "extract": {"column": name}},
        }
        fields.append(field | ({"isArray": True, "arrayShape": "-1"} if is_list else {}))
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"{published.splits[split].rows} rows in {len(own)} files",
        "field": fields,
    }


def _kind(feature: Any) -> tuple[str | None, bool]:
    """The Croissant type of a feature, or None if it has no plain type, and whether the feature is a list."""
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _kind(inner)[0], True
    if getattr(feature, "names", None) is not None:  # ClassLabel
        return "sc:Integer", False
    dtype = str(getattr(feature, "dtype", ""))
    if dtype.startswith(("int", "uint")):
        return "sc:Integer", False
    if dtype.startswith("float"):
        return "sc:Float", False
    return _KINDS.get(dtype), False
