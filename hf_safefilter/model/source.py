"""Where a model comes from, pinned to a commit of the Hub or to a digest of local files.

A model is a Hub id, a folder, or a GGUF file (``folder/file.gguf``, ``owner/name/file.gguf``); with an adapter that is
merged into it, it is called ``base + adapter``, and so is its revision.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Required, TypedDict

from hf_safefilter.errors import (
    IntegrityError,
    ModelError,
    OptionError,
    SafefilterError,
    is_disk_full,
    is_out_of_memory,
    is_unusable_place,
)
from hf_safefilter.model.model_files import require_contained
from hf_safefilter.storage.artifacts import file_sha256
from hf_safefilter.storage.hub_states import hub_state
from hf_safefilter.storage.paths import is_folder, is_there, shortened

TOY = "toy"
"""Reserved name of the tiny model that is part of the package."""

# The files that decide the vectors: weights, their index, the configuration, the tokenizer and its template. The card,
# generation settings and pickled weights (which are never read) do not belong to them.
_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
ADAPTER = "adapter_config.json"
_ADAPTER_FILES = (ADAPTER, "adapter_model.safetensors")
GGUF = ".gguf"
JOINED = " + "
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ModelKey:
    """A model pinned to its bytes and to the number format it computes in: what a step holds instead of a model.

    Attributes:
        model: Hub id, local folder, or "toy".
        revision: Commit of 40 hexadecimal digits, or the ``sha256:`` digest of a folder.
        dtype: "float32", "bfloat16" or "float16".
    """

    model: str
    revision: str
    dtype: str


class Location(TypedDict, total=False):
    """Arguments of `from_pretrained` that say which model is loaded."""

    pretrained_model_name_or_path: Required[str]
    revision: Required[str | None]
    gguf_file: str


def with_adapter(base: str, adapter: str | None) -> str:
    """The name of a model into which an adapter is merged."""
    return base if adapter is None else f"{base}{JOINED}{adapter}"


def base_and_adapter(model: str) -> tuple[str, str | None]:
    """The two parts of a name, or of a revision, that `with_adapter` has made."""
    if is_there(model):
        return model, None  # a folder may be called so
    base, _, adapter = model.partition(JOINED)
    return base, adapter or None


def gguf_file(base: str) -> str | None:
    """The name of the GGUF file that a model without its adapter is, if it is one."""
    return Path(base).name if base.lower().endswith(GGUF) else None


def resolve_revision(model: str, revision: str | None) -> str:
    """The immutable name of what `model` at `revision` is today.

    A Hub id becomes a commit (from the local cache if the Hub cannot be reached or ``HF_HUB_OFFLINE=1`` is set); a
    local folder becomes ``sha256:`` and the digest of its configuration, weights, tokenizer and template.

    Raises:
        ModelError: There is no such model, no access to it, or no network and no cached copy.
        OptionError: A local folder is requested at a revision that is not a digest.
        IntegrityError: The digest of a folder is not the requested `revision`.
    """
    base, adapter = base_and_adapter(model)
    base_revision, adapter_revision = base_and_adapter(revision or "")
    resolved = _resolved(base, base_revision or None, _model_digest)
    if adapter is None:
        return resolved
    return with_adapter(resolved, _resolved(adapter, adapter_revision, _adapter_digest))


def _resolved(model: str, revision: str | None, digest_of: Callable[[str, Path], str]) -> str:
    folder = local_folder(model)
    if folder is None:
        return _commit(repository(model), revision)
    digest = digest_of(model, folder)
    if revision is None or revision == digest:
        return digest
    if not revision.startswith("sha256:"):
        raise OptionError(f"{model} is a local folder and has no revision {revision!r}", fix="leave `revision=...` out")
    raise IntegrityError(
        f"{model} is not the model that was recorded: its files have changed",
        found=f"{digest} instead of {revision}",
        fix="restore the files, or construct the step again to use the files as they are now",
    )


def repository(base: str) -> str:
    """The Hub id of a model that is not local: of a GGUF file, that of its repository."""
    return base.rpartition("/")[0] if gguf_file(base) else base


def local_folder(model: str) -> Path | None:
    """The folder that `model` is, or that its GGUF file is in; None if it is on the Hub.

    Raises:
        ModelError: `model` is another file, or neither a folder nor a valid Hub id.
    """
    model, _ = base_and_adapter(model)
    if model == TOY:
        from hf_safefilter.toy import toy_model_path

        return Path(toy_model_path())
    if is_folder(model):
        return Path(model).expanduser()
    if is_there(model):
        if gguf_file(model):
            return Path(model).expanduser().parent
        raise ModelError(f"{model} is a file, not a model", fix="pass the folder that contains config.json")
    if not _REPO_ID.fullmatch(repository(model)):
        raise ModelError(
            f"{shortened(model)!r} is neither a local folder nor a Hub id", fix="check the spelling of the path"
        )
    return None


def _model_digest(model: str, folder: Path) -> str:
    name = gguf_file(model)
    if name is None:
        return folder_digest(folder)
    if (folder / ADAPTER).is_file():
        raise beside_adapter(str(folder))
    return _digest_of(folder, [folder / name])


def beside_adapter(model: str) -> ModelError:
    """The error of a folder or repository that holds an adapter, whose base model would be loaded in its place."""
    return ModelError(f"{model} contains an adapter", fix=f"name its base model, and `adapter={model!r}` beside it")


def _adapter_digest(adapter: str, folder: Path) -> str:
    """That of an adapter's files.

    Raises:
        ModelError: It is not an adapter as PEFT saves it, with safetensors.
    """
    paths = [folder / name for name in _ADAPTER_FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelError(
            f"{adapter} contains no adapter: {missing[0]} is missing",
            fix="save it with save_pretrained of PEFT, as safetensors",
        )
    return _digest_of(folder, paths)


def folder_digest(folder: Path) -> str:
    """``sha256:`` digest over the names and bytes of the files that decide what a local model computes.

    Raises:
        ModelError: There is no config.json, or the folder contains an adapter.
    """
    paths = sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})
    if (folder / ADAPTER).is_file():
        raise beside_adapter(str(folder))
    if folder / "config.json" not in paths:
        files = sorted(path.name for path in folder.glob(f"*{GGUF}"))
        fix = f"name the file: {folder / files[0]}" if files else "save it with save_pretrained"
        raise ModelError(f"{folder} contains no model: config.json is missing", fix=fix)
    return _digest_of(folder, paths)


def _digest_of(folder: Path, paths: Sequence[Path]) -> str:
    require_contained(folder, paths)
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(folder).as_posix()}\0{_file_digest(path)}\n".encode())
    return "sha256:" + total.hexdigest()


def _file_digest(path: Path) -> str:
    """sha256 of a file: computed once a process, unless the file may have changed."""
    stat = path.stat()
    # anybody can set the time of modification; that of the last change of the entry is the system's own
    return _remembered_digest(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _remembered_digest(path: Path, *identity: int) -> str:
    return file_sha256(path)


def _commit(model: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    with explained(model, revision):
        return str(HfApi().resolve_revision(model, revision=revision).resolved)


def location(key: ModelKey) -> Location:
    """The arguments of `from_pretrained` for the pinned model.

    Raises:
        IntegrityError: A local folder has changed since the key was made.
    """
    base, adapter = base_and_adapter(key.model)
    folder, name = local_folder(base), gguf_file(base)
    if folder is None:
        found: Location = {"pretrained_model_name_or_path": repository(base), "revision": _base_revision(key)}
    else:
        found = {"pretrained_model_name_or_path": str(folder), "revision": None}
    if folder is not None or adapter is not None:
        resolve_revision(key.model, key.revision)
    return found | {"gguf_file": name} if name else found


@contextmanager
def unchanged(key: ModelKey) -> Iterator[Location]:
    """`location`, and the same check again after the block, for what is read in it.

    Raises:
        IntegrityError: A local folder has changed since the key was made.
    """
    yield location(key)
    location(key)


def file_on_hub(key: ModelKey, name: str, *, gguf_too: bool = False) -> Path | None:
    """A file of a pinned model on the Hub, from the local cache where it is there; None if it has no such file.

    None also for a local folder, and without `gguf_too` for a GGUF file, which needs no other.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    base, revision = base_and_adapter(key.model)[0], _base_revision(key)
    if local_folder(base) is not None or (gguf_file(base) and not gguf_too):
        return None
    base = repository(base)
    with explained(base, revision):
        cached = try_to_load_from_cache(base, name, revision=revision)
        if cached is not None or constants.HF_HUB_OFFLINE:
            return Path(cached) if isinstance(cached, str) else None  # else it is known that there is none
        try:
            return Path(hf_hub_download(base, name, revision=revision))
        except EntryNotFoundError:
            return None


def _base_revision(key: ModelKey) -> str:
    return base_and_adapter(key.revision)[0]


def adapter_folder(key: ModelKey) -> Path | None:
    """The folder with the files of the adapter of a pinned model; None if it has none.

    Raises:
        ModelError: It cannot be fetched from the Hub.
    """
    _, adapter = base_and_adapter(key.model)
    if adapter is None:
        return None
    folder = local_folder(adapter)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    revision = base_and_adapter(key.revision)[1]
    with explained(adapter, revision):
        fetched = Path(snapshot_download(adapter, revision=revision, allow_patterns=list(_ADAPTER_FILES)))
    _adapter_digest(adapter, fetched)  # both files are there
    return fetched


@contextmanager
def explained(model: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the Hub and of transformers about `model` into a `ModelError` that says what to do."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.errors import RevisionResolutionError as Unreachable

    try:
        yield
    except GatedRepoError as error:
        page = f"https://huggingface.co/{model}"
        raise ModelError(f"{model} is gated", fix=f"accept its terms at {page}, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        fix = "check the spelling; if it is private, run `hf auth login`"
        raise ModelError(f"the Hub has no model {model} that you can access", fix=fix) from error
    except RevisionNotFoundError as error:
        fix = "pass a branch, tag or commit of that repository"
        raise ModelError(f"{model} has no revision {revision!r}", fix=fix) from error
    except (Unreachable, httpx2.HTTPError) as error:
        state = hub_state(error, "a folder")
        fact = f"there is no folder {model!r} and no cached copy, and the Hub cannot be reached"
        raise ModelError(fact, found=state.found, fix=state.fix) from error
    except SafefilterError:
        raise
    except ImportError as error:  # of a package that reads a format of quantised weights
        raise ModelError(
            f"{model} has weights in a format that needs another package",
            found=_line(error),
            fix="install that package, or use the model in float32, bfloat16 or float16",
        ) from error
    except Exception as error:  # whatever a damaged or hostile file trips over in the libraries that read it
        if is_disk_full(error) or is_out_of_memory(error) or is_unusable_place(error):
            raise
        raise ModelError(f"{model} cannot be loaded", found=_line(error), fix=_advice(model, error)) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _advice(model: str, error: Exception) -> str:
    text = str(error)
    if gguf_file(base_and_adapter(model)[0]):
        return (
            "use a whole GGUF file, of an architecture and number types that transformers reads (e.g. F16 or Q8_0), or "
            "the model's safetensors"
        )
    if isinstance(error, FileNotFoundError):
        return "download the model again: a file that its index names is missing"
    if "conversion of the weights" in text:  # from the form in which a format stores them
        return (
            "download the model again, or use it in float32, bfloat16 or float16: its quantised weights, or some of "
            "their scales, are not as the format in its config.json has them"
        )
    if "safetensors" in text and not isinstance(error, ValueError):
        return CONVERT
    if "trust_remote_code" in text or "model type" in text:
        return "use a model that transformers supports, or update transformers: code from a repository is not run"
    return "check that config.json, the safetensors files and the tokenizer are complete"


CONVERT = (
    "only safetensors are read, because pickled weights can run code. If you trust the file, convert it: "
    'AutoModel.from_pretrained(path, weights_only=True).save_pretrained("converted")'
)


@contextmanager
def quiet_load_report() -> Iterator[None]:
    """Suppress transformers' table of unused weights, and its note on tensors that are not split over devices.

    Unused blocks and heads are expected when only a part of a model is loaded; nothing is split here.
    """
    logs = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
