"""The texts that a plot shows, which are outlines in its SVG."""

import re
from pathlib import Path


def texts_of(path: Path) -> list[str]:
    """The texts of an SVG file of matplotlib, which names each in a comment; their line breaks are spaces."""
    return [" ".join(text.split()) for text in re.findall(r"<!-- (.*?) -->", path.read_text("utf-8"), re.DOTALL)]
