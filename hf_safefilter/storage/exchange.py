"""Exchanging two folders in one call, where the system can: there is no moment without either."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD: paths are as seen from the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE


def exchange(first: Path, second: Path) -> bool:
    """Whether two paths of one file system were exchanged; if not, neither was changed.

    Source: renameat2(2) of Linux; glibc has it since 2.28.
    """
    call = _renameat2()
    return call is not None and call(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


@cache
def _renameat2() -> Any:
    try:
        call = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # another system
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call
