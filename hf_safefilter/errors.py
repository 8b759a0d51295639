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


class SafefilterError(Exception):
    """Base of all errors raised on purpose by this package.

    An option stands in backticks in its Python form, `name=value`; each surface prints it in its own language.

    Args:
        fact: what happened, with the offending value, in one sentence.
        found: what was there instead, when that helps.
        fix: what to do next, a command or an argument where possible.
    """

    def __init__(self, fact: str, *, found: str | None = None, fix: str | None = None) -> None:
        self.fact, self.found, self.fix = fact, found, fix
        lines = [fact]
        if found is not None:
            lines.append(f"found: {found}")
        if fix is not None:
            lines.append(f"fix: {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple:
        # Errors cross process borders in `Dataset.map(num_proc=...)`; keyword-only arguments need help to do so.
        return _rebuild, (type(self), self.fact, self.found, self.fix)


def _rebuild(kind: type[SafefilterError], fact: str, found: str | None, fix: str | None) -> SafefilterError:
    return kind(fact, found=found, fix=fix)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, is a disk without room."""
    while error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it came from, is a lack of memory: torch has no type for the machine's own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


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
