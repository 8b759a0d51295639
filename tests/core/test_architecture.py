"""The shape of the house: imports point one way, methods do not know each other, only the command line prints."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_safefilter

ROOT = Path(hf_safefilter.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = [
    {"errors", "columns", "figures"},
    {"batch", "artifacts", "step", "pieces"},
    {"kept", "rows"},
    {"cache", "starter", "toy"},
    {"model"},
    {"locate", "freeze"},
    {"embed"},
    {"references"},
    {"scores"},
    {"select", "thresholds", "guarantee", "evaluation", "choose"},
    {"effect"},
    {"publish"},
    {"inputs", "recipe"},
    {"engine"},
    {"auto_layer"},
    {"pipeline", "trail", "decision", "demo", "compare", "comparison"},
    {"shards", "workers", "plan"},
    {"cli"},
]
"""From the ground up: a file may import from its own floor and the floors below."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, also inside functions; type-checking blocks are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    known = {name_of(file) for file in FILES}
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            files = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in files if name.removeprefix("hf_safefilter.") in known}
            # `from package import file` is an import of the file, not of the package's face
            found |= inner | (set() if inner == files else {node.module})
    inside = {name.removeprefix("hf_safefilter.") for name in found if name.startswith("hf_safefilter.")}
    return {name for name in inside if name in known and name}


def floor_of(module: str) -> int:
    top = module.split(".")[0]
    return next(level for level, names in enumerate(FLOORS) if top in names)


def test_every_file_has_its_floor():
    assert {name_of(path).split(".")[0] for path in FILES} - {""} <= set().union(*FLOORS)


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p)], ids=name_of)
def test_imports_point_down(path):
    mine = floor_of(name_of(path))
    above = {name for name in imports(path) if floor_of(name) > mine}
    assert not above, f"{name_of(path)} reaches up to {above}"


def test_there_is_no_circle():
    graph = {name_of(path): imports(path) - {name_of(path)} for path in FILES if name_of(path)}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in graph[module]:
                # A package's face may list its own files; what counts is the way back.
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_method_imports_another():
    shared = {"scores", "scores.base", "scores.controls"}
    for path in (ROOT / "scores").glob("*.py"):
        if path.stem != "__init__":
            others = {name for name in imports(path) if name.startswith("scores.")} - shared
            assert not others, f"{path.stem} imports {others}"


def test_only_the_command_line_prints_and_nothing_unpickles():
    for path in FILES:
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls or "cli" in path.parts, path
        assert not calls & {"eval", "exec", "__import__"}, path
        assert "import pickle" not in path.read_text(encoding="utf-8"), path
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8"), path


def test_files_hold_one_idea():
    long = {name_of(path): n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_the_face_is_light_and_every_name_on_it_is_there():
    code = "import sys, hf_safefilter; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in hf_safefilter.__all__:
        assert getattr(hf_safefilter, name) is not None
    with pytest.raises(AttributeError):
        hf_safefilter.cheese  # noqa: B018
