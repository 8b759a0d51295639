"""Figures as files: PNG for a page, SVG for a paper, and the same bytes from the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, GREY = "#0072b2", "#c44e00", "#757575"
"""Colours of what is kept or measured, of what is dropped or warned about, and of what both are compared with.

They are those of the review page: the colour-blind tell blue and vermilion apart (Okabe and Ito)."""

STRIPES: Mapping[str, Any] = {"hatch": "////", "edgecolor": "white", "linewidth": 0}
"""How a bar of what is dropped is filled, so that it is told from others without any colour."""


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


def drawable(text: str, otherwise: str, most: int = 40) -> str:
    """A text from data as it can be drawn: on one line, at most so many characters, and without mathematics.

    Args:
        text: Any text.
        otherwise: What is drawn instead of a text with letters that the font lacks, which would be empty boxes.
        most: Number of characters from which a text is cut; an ellipsis is then the last one.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    line = " ".join(text.split())
    if not {ord(sign) for sign in line} <= get_font(findfont(FontProperties())).get_charmap().keys():
        return otherwise
    return (line if len(line) <= most else f"{line[: most - 1]}…").replace("$", r"\$")
