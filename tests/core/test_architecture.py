"""The shape of the house: imports point one way, between files and between folders; only the command line prints."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import hf_safefilter

ROOT = Path(hf_safefilter.__file__).parent
TESTS = Path(__file__).parents[1]
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = [
    {"errors", "figures"},
    {"checks", "columns", "storage", "starter", "toy"},
    {"data"},
    {"step", "model", "cache", "rows"},
    {"embed"},
    {"references", "plan"},
    {"scores"},
    {"locate", "decide"},
    {"recipe", "freeze", "engine", "saved", "publish"},
    {"compare", "effect", "labeling", "pipeline", "demo"},
    {"review"},
    {"cli"},
]
"""From the ground up: a file may import from its own folder and from the floors below it, for typing too."""

LOOSE = 10
"""Modules that may lie at the top, beside the folders."""

SHARED_STEMS = {"score", "fit"}
"""File names that every fitted score has, with one meaning."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, inside functions and for typing too; its own name is left out.

    The face is not asked: that it lists all names is its purpose.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            files = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in files if name.removeprefix("hf_safefilter.") in KNOWN}
            # `from package import file` is an import of the file, not of the package's face
            found |= inner | (set() if inner == files else {node.module})
    inside = {name.removeprefix("hf_safefilter.") for name in found if name.startswith("hf_safefilter.")}
    return {name for name in inside if name in KNOWN} - {name_of(path)}


GRAPH = {name: imports(path) for name, path in KNOWN.items() if name}


def folder_of(name: str) -> str:
    """The folder a module lies in; a loose module stands for itself."""
    inside = name.rpartition(".")[0]
    return name if KNOWN[name].name == "__init__.py" or not inside else inside


def circle_in(graph: dict[str, set[str]]) -> tuple[str, ...] | None:
    """The nodes of a circle, or None."""
    done: set[str] = set()

    def visit(node: str, way: tuple[str, ...]) -> tuple[str, ...] | None:
        if node in way:
            return (*way[way.index(node) :], node)
        if node in done:
            return None
        for other in sorted(graph.get(node, ())):
            if (circle := visit(other, (*way, node))) is not None:
                return circle
        done.add(node)
        return None

    return next((circle for node in graph if (circle := visit(node, ())) is not None), None)


def floor_of(module: str) -> int:
    top = module.split(".")[0]
    return next(level for level, names in enumerate(FLOORS) if top in names)


def test_every_folder_and_loose_module_has_its_floor():
    assert {name.split(".")[0] for name in GRAPH} == set().union(*FLOORS)
    assert all(len(floor) <= 5 for floor in FLOORS), "a floor that holds much of the house says nothing"


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_point_down(name):
    own, mine = name.split(".")[0], floor_of(name)
    above = {other for other in GRAPH[name] if other.split(".")[0] != own and floor_of(other) >= mine}
    assert not above, f"{name} reaches up to {above}"


def test_there_is_no_circle_between_files():
    assert circle_in(GRAPH) is None


def test_there_is_no_circle_between_folders_at_any_depth():
    folders: dict[str, set[str]] = defaultdict(set)
    for name, others in GRAPH.items():
        folders[folder_of(name)] |= {folder_of(other) for other in others} - {folder_of(name)}
    assert circle_in(folders) is None


def test_a_circle_would_be_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ("a", "b", "c", "a")
    assert circle_in({"a": {"b"}, "b": set()}) is None


def test_few_modules_lie_loose():
    loose = [name for name, path in KNOWN.items() if name and "." not in name and path.name != "__init__.py"]
    assert len(loose) <= LOOSE, loose


def test_no_file_name_means_two_things():
    """But for the commands, which are named after what they call, and what every fitted score has."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in KNOWN.items():
        if path.name != "__init__.py" and not name.startswith("cli."):
            places[path.stem].append(name)
    twice = {stem: names for stem, names in places.items() if len(names) > 1}
    for stem in SHARED_STEMS & set(twice):
        assert all(name.startswith("scores.") for name in twice.pop(stem))
    assert not {stem: names for stem, names in twice.items() if set(names) != {"rows"}}


def test_one_command_is_one_file():
    from hf_safefilter.cli import _COMMANDS

    files = {path.stem for path in (ROOT / "cli").glob("*.py")} - {
        "__init__",
        "anywhere",
        "completion",
        "arguments",
        "output",
        "wording",
    }
    assert set(_COMMANDS) == files


def test_tests_mirror_the_house():
    folders = {name.split(".")[0] for name in GRAPH if "." in name} - {"cards"}
    assert folders <= {path.name for path in TESTS.iterdir() if path.is_dir()}


def test_no_method_imports_another():
    shared = {"scores", "scores.base", "scores.controls", "scores.ranks"}
    for name, others in GRAPH.items():
        if not name.startswith("scores."):
            continue
        own = ".".join(name.split(".")[:2])
        foreign = {other for other in others if other.startswith("scores.") and not f"{other}.".startswith(f"{own}.")}
        assert not foreign - shared, f"{name} imports {foreign - shared}"


def test_only_the_command_line_prints_and_nothing_unpickles():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls or "cli" in path.parts, path
        assert not calls & {"eval", "exec", "__import__"}, path
        assert "import pickle" not in text, path
        assert "trust_remote_code=True" not in text, path


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


def test_the_face_tells_type_checkers_what_it_tells_python():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module.removeprefix("hf_safefilter.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == hf_safefilter._HOMES
    assert sorted([*typed, "__version__"]) == hf_safefilter.__all__
    assert (ROOT / "py.typed").is_file()


def test_the_id_of_a_row_keeps_the_name_that_published_cards_print():
    from hf_safefilter.rows import row_id

    assert row_id.__module__ == "hf_safefilter.data.row_ids"
