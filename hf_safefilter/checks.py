"""Checks of options: one sentence for each kind of value that makes no sense.

An option stands in backticks in its Python form, `name=value`; the command line prints it in its own language.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from hf_safefilter.errors import OptionError


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, NumPy's included; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


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
        kind = "a number" + (f" above {above:g}" if above is not None else "") + _bounds(least, most)
        raise _refused(name, value, kind, most if most is not None else 1)


def require_share(name: str, value: Any, *, example: float = 0.05) -> None:
    """Raise `OptionError` unless `value` is a number between 0 and 1, without these two."""
    if not is_finite(value) or not 0 < value < 1:
        raise _refused(name, value, "a number between 0 and 1", example)


def require_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`; the nearest is suggested."""
    known = list(choices)
    if value not in known:
        near = get_close_matches(str(value), known, n=1)
        fix = f"did you mean `{name}={near[0]}`?" if near else f"use one of {', '.join(known)}"
        raise OptionError(f"`{name}={value}` is not known", found=", ".join(known), fix=fix)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    if least is not None:
        return f" of at least {least:g}"
    return f" of at most {most:g}" if most is not None else ""


def _refused(name: str, value: Any, kind: str, example: float) -> OptionError:
    return OptionError(f"`{name}={value!r}` is not {kind}", fix=f"use for example `{name}={example:g}`")
