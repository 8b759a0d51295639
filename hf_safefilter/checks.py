"""Checks of options, with one kind of message for each kind of value that makes no sense."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from hf_safefilter.errors import OptionError


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, NumPy's included; True and False are not."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number; True and False are not."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def require_whole(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> None:
    """Raise `OptionError` unless `value` is a whole number from `least` to `most`."""
    if not is_whole(value) or (least is not None and value < least) or (most is not None and value > most):
        raise _refused(name, value, f"a whole number{_bounds(least, most)}", 1 if least is None else least)


def require_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    """Raise `OptionError` unless `value` is a finite number above `above`, and from `least` to `most`."""
    outside = (
        not is_finite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
        or (most is not None and value > most)
    )
    if outside:
        if above is None:
            kind = f"a number{_bounds(least, most)}"
        else:
            kind = f"a number above {above:g}" + (f" and at most {most:g}" if most is not None else "")
        raise _refused(name, value, kind, most if most is not None else 1)


def require_share(name: str, value: Any, *, example: float = 0.05) -> None:
    """Raise `OptionError` unless `value` is a number between 0 and 1, both excluded."""
    if not is_finite(value) or not 0 < value < 1:
        raise _refused(name, value, "a number between 0 and 1", example)


def require_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`; the most similar one is suggested."""
    known = list(choices)
    if value not in known:
        near = get_close_matches(str(value), known, n=1)
        fix = f"did you mean `{name}={near[0]}`?" if near else f"use one of {', '.join(known)}"
        raise OptionError(f"`{name}={value}` is not known", found=", ".join(known), fix=fix)


def suggesting(name: Any, known: Iterable[str], fix: str) -> str:
    """What to do about an unknown name: the known one that it is most like, if there is one, and else `fix`."""
    near = get_close_matches(str(name), [str(one) for one in known], n=1)
    return f"did you mean {near[0]!r}? If not, {fix}" if near else fix


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:,} to {most:,}"
    if least is not None:
        return f" of at least {least:,}"
    return f" of at most {most:,}" if most is not None else ""


def _refused(name: str, value: Any, kind: str, example: float) -> OptionError:
    return OptionError(f"`{name}={value!r}` is not {kind}", fix=f"use for example `{name}={example:g}`")
