"""What is released: a wheel that runs on its declared dependencies alone, and files that say what changed."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.xdist_group("release")  # one worker builds the wheel

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def closure(requirements: list[str]) -> set[str]:
    """Distributions that these requirements install, with what they need themselves; extras only where asked for."""
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (name_of(requirement.name), extra) in seen:
                continue
            seen.add((name_of(requirement.name), extra))
            inner = map(Requirement, distribution(requirement.name).requires or [])
            waiting += [one for one in inner if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files beside its source
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hf_safefilter", source / "hf_safefilter", ignore=no_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment that holds the wheel and what it declares to need, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    needed = folder / "needed"
    needed.mkdir()
    for name in closure(PROJECT["dependencies"]):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (needed / top).exists():
                (needed / top).symlink_to(installed.locate_file(top))
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(f"{needed}\n")
    return folder / "venv" / "bin"


def run(environment, *words, cwd):
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(environment / "hf-safefilter"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


def test_the_wheel_holds_all_that_the_package_reads(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "hf_safefilter"
    read = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in read} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert not [name for name in held if name.startswith(("tests", "benchmarks"))]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--help"], "Start here: hf-safefilter demo"),
        (["--version"], f"hf_safefilter {PROJECT['version']}"),
        (["doctor"], "missing: nothing"),
        (["methods"], "larf"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_it_starts_where_only_its_dependencies_are(environment, tmp_path, words, says):
    done = run(environment, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_the_demo_runs_where_only_its_dependencies_are(environment, tmp_path):
    done = run(environment, "demo", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "clean" / "README.md").is_file()


def test_an_extra_that_is_not_there_is_named(environment, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    done = run(environment, "seal", rows, rows, "--model", "toy", "--output", "sealed", cwd=tmp_path)
    assert done.returncode == 1 and "pip install 'hf_safefilter[train]'" in done.stderr


UNDECLARED = {"vllm"}
"""vLLM asks for an older transformers than this package, so no extra of it can be installed: the guide says how."""


def test_all_that_is_imported_is_declared():
    declared = [
        *PROJECT["dependencies"],
        *(one for group in PROJECT["optional-dependencies"].values() for one in group),
    ]
    named = {name_of(Requirement(text).name) for text in declared}
    homes = packages_distributions()
    for path in (ROOT / "hf_safefilter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for top in {module.split(".")[0] for module in modules} - {
                *sys.stdlib_module_names,
                "hf_safefilter",
                *UNDECLARED,
            }:
                assert {name_of(home) for home in homes[top]} & named, f"{path.name} imports {top}"


def test_what_is_pinned_is_what_is_declared():
    pinned = {
        name_of(line.split("==")[0]): line.split("==")[1]
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    for name in closure([text for text in declared if not text.startswith("hf_safefilter")]):
        assert name in pinned, name
    for text in declared:
        requirement = Requirement(text)
        if name_of(requirement.name) in pinned:
            assert requirement.specifier.contains(pinned[name_of(requirement.name)]), text


def test_every_raised_algorithm_number_has_its_line_in_the_changelog():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path in (ROOT / "hf_safefilter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            raised = re.search(
                r"algorithm: int = field\(default=(\d+)", ast.get_source_segment(path.read_text(), node) or ""
            )
            if raised and int(raised[1]) > 1:
                assert f"`{node.name}` algorithm {raised[1]}" in changes, node.name
