"""Figures as files: PNG for a page, SVG for a paper, and the same bytes from the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, GREY = "#3b6ea5", "#c8553d", "#8a8a8a"
"""Colours of what is kept or measured, of what is dropped or warned about, and of what both are compared with."""


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches to draw on; written to ``path.png`` and ``path.svg`` at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.hashsalt": "hf_safefilter", "font.size": 10}
    with matplotlib.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        canvas = Figure(figsize=(width, height), layout="constrained")
        yield canvas
        path.parent.mkdir(parents=True, exist_ok=True)
        # The names of arms and methods may contain dots, where `with_suffix` would cut them.
        canvas.savefig(path.parent / f"{path.name}.png", dpi=150, metadata={"Software": None})
        canvas.savefig(path.parent / f"{path.name}.svg", metadata={"Date": None, "Creator": None})
