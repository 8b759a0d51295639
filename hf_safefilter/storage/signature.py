"""Signatures: how this program tells what it has written itself from what came with data.

A signature is an HMAC-SHA256 by a random key that lies beside the artefacts (`artifacts.store_root`), is made at the
first use and never leaves the machine. Who cannot read the store cannot sign; who may write to it is trusted. Machines
that share work share a key: ``HF_SAFEFILTER_KEY`` names its file.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_safefilter.errors import MissingError
from hf_safefilter.storage.artifacts import store_root
from hf_safefilter.storage.scratch import scratch_file, sweep

logger = logging.getLogger(__name__)

KEY = "HF_SAFEFILTER_KEY"
"""Environment variable: the file that holds the key, where it is shared."""

SIGNATURE = "signature"
"""The entry of a record that holds its signature."""

_BYTES = 32
_NAME = "signing.key"


def signed(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The record with its signature added.

    Args:
        record: Plain JSON values.
        kind: What is recorded; a signature of another kind does not count.
    """
    return {**record, SIGNATURE: _signature(record, kind)}


def is_signed(record: Mapping[str, Any], kind: str) -> bool:
    """Whether a record of this `kind` was signed here, and not changed since."""
    given = record.get(SIGNATURE)
    expected = _signature(record, kind).encode()
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), expected)


def _signature(record: Mapping[str, Any], kind: str) -> str:
    body = {name: value for name, value in record.items() if name != SIGNATURE}
    text = json.dumps([kind, body], sort_keys=True, separators=(",", ":"))
    return hmac.digest(_key(_key_file()), text.encode(), "sha256").hex()


def code_of(content: bytes | memoryview) -> str:
    """32 hex digits that nobody without the key can compute for these bytes: half of their HMAC-SHA256."""
    return hmac.digest(_key(_key_file()), content, "sha256").hex()[:32]


def key_name() -> str:
    """16 hex digits that tell one key from another and do not give it away."""
    return hmac.digest(_key(_key_file()), b"name of the key", "sha256").hex()[:16]


def _key_file() -> Path:
    named = os.environ.get(KEY)
    return Path(named).expanduser() if named else store_root() / _NAME


@lru_cache(maxsize=8)
def _key(path: Path) -> bytes:
    sweep(path.parent, path.name)
    if not path.exists():
        if os.environ.get(KEY):
            raise MissingError(
                f"{KEY} names a file that is not there", found=str(path), fix=f"make it: head -c {_BYTES} /dev/urandom"
            )
        try:
            _make(path)
        except OSError as error:
            logger.warning("%s cannot be written (%s): other processes cannot tell what this one writes", path, error)
            return os.urandom(_BYTES)
    key = path.read_bytes()
    if len(key) < _BYTES:
        raise MissingError(f"{path} holds no key", found=f"{len(key)} bytes, not {_BYTES}", fix="delete it")
    return key


def _make(path: Path) -> None:
    """Write a new key, readable for this user alone, unless another process is faster: all processes use one key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_file(path.parent, path.name) as scratch:
        with scratch.open("wb") as file:
            file.write(os.urandom(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)  # unlike a rename, it never replaces a file
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            with suppress(FileExistsError), path.open("xb") as own:
                own.write(scratch.read_bytes())
