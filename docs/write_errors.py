"""Write docs/errors.md: every sentence that an error of this package can say, read out of its source.

python docs/write_errors.py        # `make fix` runs it
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1] / "hf_safefilter"
PAGE = Path(__file__).parent / "errors.md"
GAP = "…"
"""What stands for a value that is known only when the error happens."""

KINDS = {
    "DataError": "Rows, columns or values that cannot be used as they are. A `ValueError`; exit code 1.",
    "OptionError": "An option, a key of a recipe or a threshold that makes no sense. A `ValueError`; exit code 2.",
    "MissingError": "A column, layer, file or artefact that is not there. A `LookupError`; exit code 1.",
    "ModelError": "A model that cannot be read as asked. A `RuntimeError`; exit code 1.",
    "IntegrityError": "Bytes that are not the bytes that were recorded. A `ValueError`; exit code 1.",
    "PublishError": "The Hub refused, or a card would be incomplete. A `RuntimeError`; exit code 1.",
    "SafefilterError": "What is unlike all of these: the base class of all errors. Exit code 1.",
}

HEAD = f"""\
# Every error and what to do

An error of this package says what happened, what was found instead, and what to do next. This page is read out of the
source by `docs/write_errors.py`: find the words of your message on it by searching. {GAP} stands for a value of yours.
Where no advice stands, the line `found:` of the message names what to correct, or the sentence is a line of `verify`.
Options stand in their Python form, `max_length=512`; a shell prints `--max-length 512`, a recipe `max_length: 512`.
In Python all of them are `hf_safefilter.SafefilterError`, with the parts `fact`, `found` and `fix`. Why a single *row*
could not be read is no error but a reason: see [the reasons](guide/rows.md#rows-that-cannot-be-scored).

What is not on this page comes from another package: set `HF_SAFEFILTER_DEBUG=1` to see where.
"""

Scope = Mapping[str, list[ast.expr]]
"""Name -> the values that are assigned to it."""


def page() -> str:
    """The page as it should be."""
    found: dict[str, dict[str, set[str]]] = {kind: defaultdict(set) for kind in KINDS}
    for path in sorted(ROOT.rglob("*.py")):
        for kind, fact, fix in _errors_in(path):
            found[kind][fact] |= {fix} - {""}
    parts = [HEAD]
    for kind, meaning in KINDS.items():
        lines = [_line(fact, sorted(fixes)) for fact, fixes in sorted(found[kind].items(), key=_by_words)]
        parts.append(f"## {kind}\n\n{meaning}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _by_words(entry: tuple[str, set[str]]) -> tuple[str, str]:
    return re.sub(r"[^a-z0-9 ]", "", entry[0].lower()).strip(), entry[0]


def _line(fact: str, fixes: list[str]) -> str:
    return f"- **{_escaped(fact)}**" + (f" → {_escaped('; or: '.join(fixes))}" if fixes else "")


def _escaped(text: str) -> str:
    """Text as Markdown shows it, code in backticks as it is."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part if place % 2 else re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", part) for place, part in enumerate(parts)
    )


def _errors_in(path: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, fact and fix of each error that a file constructs, every way in which these may read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from _errors_below(tree, _assigned(tree), {})


def _errors_below(node: ast.AST, constants: Scope, local: Scope) -> Iterator[tuple[str, str, str]]:
    for child in ast.iter_child_nodes(node):
        own = _assigned(child) if isinstance(child, ast.FunctionDef) else local
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in KINDS and child.args:
            scope = {**constants, **own}
            fixes = [keyword.value for keyword in child.keywords if keyword.arg == "fix"]
            for fact in _texts(child.args[0], scope):
                if fact.strip(GAP + " :"):
                    for fix in _texts(fixes[0], scope) if fixes else [""]:
                        yield child.func.id, fact, fix if fix.strip(GAP + " ") else ""
        yield from _errors_below(child, constants, own)


def _assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """What is assigned to each name in a module, nested scopes left out, or in a function."""
    values: dict[str, list[ast.expr]] = defaultdict(list)
    nodes = ast.iter_child_nodes(scope) if isinstance(scope, ast.Module) else ast.walk(scope)
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in _pairs(target, node.value):
                    values[name].append(value)
    return values


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for name, item in zip(target.elts, value.elts, strict=True):
            yield from _pairs(name, item)


def _texts(node: ast.expr, scope: Scope, depth: int = 3) -> list[str]:
    """The texts that an expression may be; `GAP` for what is not written in the source."""
    if isinstance(node, ast.Constant):
        return [node.value if isinstance(node.value, str) else GAP] if node.value is not None else [""]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, scope, depth), *_texts(node.orelse, scope, depth)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [one + other for one in _texts(node.left, scope, depth) for other in _texts(node.right, scope, depth)]
    if isinstance(node, ast.Name) and node.id in scope and depth:
        return [text for value in scope[node.id] for text in _texts(value, scope, depth - 1)]
    return [GAP]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
