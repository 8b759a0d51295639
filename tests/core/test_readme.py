"""The README is run: its Python block, its commands, its promises of size."""

import json
import re
from pathlib import Path

import pytest

from hf_safefilter.demo import mixed_rows

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = mixed_rows()[:200]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    seen: dict = {}
    exec(compile(code, "README.md", "exec"), seen)  # noqa: S102  (our own words)
    assert len(seen["clean"]) == 180
    assert "larf_score" in seen["clean"].column_names


def test_every_command_in_the_readme_exists():
    from hf_safefilter.cli import app

    known = {command.callback.__name__ for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    used = set(re.findall(r"hf-safefilter (\w+)", README))
    assert used
    assert used <= known, used - known


def test_every_public_name_in_the_readme_exists():
    import hf_safefilter

    for name in re.findall(r"`(\w+Score|push_\w+|IsSafe|threshold_for)\b", README):
        assert hasattr(hf_safefilter, name), name


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_in_the_makefile(target):
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
