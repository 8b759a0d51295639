"""The pages of docs/ as text: their blocks of code, their links, their headings.

Every fenced block of ``sh`` and ``python`` is run, in the order of the pages, in one folder; one that names a file by
``title="..."`` is written there. A comment `<!-- not run: why -->` above a block keeps it from being run; the commands
in it are still held against the program's options. `# exit code N` ends a command that ends with N.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

GUIDE = (
    "five-minutes", "rows", "model", "references", "choosing", "reviewing", "publishing", "verifying", "clusters",
    "methods", "limits",
)  # fmt: skip
"""The pages of the guide in the order in which they are read, and run."""

_BLOCK = re.compile(r'(<!-- not run: [^>]+ -->\n)?^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: "sh", "python", ...
        title: Name of the file that it is, or "".
        code: What stands in it.
        run: Whether it is run.
        line: The line of the page on which it begins, counted from 1.
    """

    language: str
    title: str
    code: str
    run: bool
    line: int


def every_page() -> list[Path]:
    """All pages, and those of the repository that link to them."""
    return [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block(match[2], match[3] or "", match[4], match[1] is None, text[: match.start(2)].count("\n") + 1)
        for match in _BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> list[str]:
    """The command lines of a block; a line that ends in a backslash goes on."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def links_of(text: str) -> list[str]:
    """What the links of a page lead to; code is left out."""
    return _LINK.findall(without_code(text))


def anchors_of(text: str) -> set[str]:
    """Names of the headings, as links write them."""
    names = [re.sub(r"[^\w\s-]", "", name.lower()).strip() for name in _HEADING.findall(without_code(text))]
    return {re.sub(r"\s+", "-", name) for name in names}


def without_code(text: str) -> str:
    """The page without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", text))
