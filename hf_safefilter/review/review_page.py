"""The page as one document: its style and its script stand in it, so that nothing else is ever fetched."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("state", "histogram", "scatter", "rows_list", "row_panel", "words", "decisions", "teach", "start")
"""Files of the script, in order: each uses names of those before it."""


@cache
def document() -> str:
    """The HTML; it holds no row and no token."""
    page = (_FOLDER / "page.html").read_text(encoding="utf-8")
    return page.replace("/*style*/", _style()).replace("/*script*/", _script())


def policy(framed_by: str = "'none'") -> str:
    """The Content-Security-Policy: this style and this script by their digests, requests to this server, nothing else.

    Args:
        framed_by: Who may show the page in a frame.
    """
    return (
        f"default-src 'none'; script-src {_digest(_script())}; style-src {_digest(_style())}; connect-src 'self'; "
        f"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors {framed_by}"
    )


@cache
def _style() -> str:
    return (_FOLDER / "page.css").read_text(encoding="utf-8")


@cache
def _script() -> str:
    return '"use strict";\n' + "".join((_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
