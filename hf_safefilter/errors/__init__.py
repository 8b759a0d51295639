"""Every error a user can meet: what happened, what was found, what to do next.

SafefilterError
|-- DataError        (ValueError)    rows, columns or values that cannot be used
|-- OptionError      (ValueError)    an option, recipe key or threshold that makes no sense
|-- MissingError     (LookupError)   a column, layer, file or artefact that is not there
|-- ModelError       (RuntimeError)  a model that cannot be read as asked
|-- IntegrityError   (ValueError)    bytes that are not the bytes that were recorded
`-- PublishError     (RuntimeError)  the Hub refused, or a card would be incomplete
"""

from __future__ import annotations

import errno
from typing import Any

from hf_safefilter.errors.redaction import shown


class SafefilterError(Exception):
    """Base of all errors raised on purpose by this package.

    An option is written in backticks in its Python form, `name=value`; the command line prints it as a flag or a key.
    Passwords, tokens and control characters in the texts are taken out.

    Args:
        fact: What happened, with the offending value, in one sentence.
        found: What was there instead, where that helps.
        fix: What to do next: a command or an argument where possible.
    """

    def __init__(self, fact: str, *, found: str | None = None, fix: str | None = None) -> None:
        fact, found, fix = shown(fact), found and shown(found), fix and shown(fix)
        self.fact, self.found, self.fix = fact, found, fix
        lines = [fact]
        if found is not None:
            lines.append(f"found: {found}")
        if fix is not None:
            lines.append(f"fix: {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        # `Dataset.map(num_proc=...)` pickles errors, and the default does not restore keyword-only arguments.
        return _rebuild, (type(self), self.fact, self.found, self.fix)


def _rebuild(kind: type[SafefilterError], fact: str, found: str | None, fix: str | None) -> SafefilterError:
    return kind(fact, found=found, fix=fix)


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch, of the memory of the machine
    "Cannot allocate memory",  # the system's words for ENOMEM, in errors of other kinds
    "can't start new thread",
    "Failed to launch worker thread",
)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or its cause, is a full disk, or a file that may not grow any more."""
    while error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or its cause, is a lack of memory, which libraries say in many ways; threads need some too."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    said = str(error)
    return any(sign in said for sign in _NO_MEMORY)


def is_unusable_place(error: BaseException) -> bool:
    """Whether an error is of a place that cannot be used, e.g. a cache without rights, and not of what a file holds."""
    return isinstance(error, OSError) and error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
    )


class DataError(SafefilterError, ValueError):
    """Rows, columns or values that cannot be used as they are."""


class OptionError(SafefilterError, ValueError):
    """An option, recipe key or threshold that makes no sense."""


class MissingError(SafefilterError, LookupError):
    """A column, layer, file or artefact that is not there."""


class ModelError(SafefilterError, RuntimeError):
    """A model that cannot be read as asked."""


class IntegrityError(SafefilterError, ValueError):
    """Bytes that are not the bytes that were recorded."""


class PublishError(SafefilterError, RuntimeError):
    """The Hub refused, or the card would be incomplete."""
