"""`hf safefilter ...`: what the extensions of huggingface_hub's program ask of this package."""

import os
import stat
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub.cli import extensions

from hf_safefilter.cli import wording

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def home(tmp_path):
    """A home in which `hf` has installed the package: the script of the entry point, and hf's record of it."""
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-safefilter"
    script = folder / "venv" / "bin" / "hf-safefilter"
    script.parent.mkdir(parents=True)
    module, function = PROJECT["scripts"]["hf-safefilter"].split(":")
    script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    extensions.ExtensionManifest(
        owner="me", repo="hf-safefilter", repo_id="me/hf-safefilter", short_name="safefilter",
        executable_path=str(script), type="python", installed_at=datetime(2026, 1, 1, tzinfo=UTC),
        description=PROJECT["description"],
    ).save(folder)  # fmt: skip
    return tmp_path


def hf(home, *words):
    environment = os.environ | {"HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)


def test_a_repository_of_the_name_that_hf_asks_for_brings_the_script_that_it_runs():
    owner, repository, name = extensions._normalize_repo_id("me/hf-safefilter")
    assert (owner, repository, name) == ("me", "hf-safefilter", "safefilter")
    assert PROJECT["scripts"][f"hf-{name}"] == "hf_safefilter.cli:main"
    assert not (ROOT / repository).exists()  # a file of this name would be run in place of the package


def test_hf_hands_on_arguments_output_and_exit_code(home):
    done = hf(home, "safefilter", "--format", "quiet", "methods")
    assert done.returncode == 0 and "larf" in done.stdout.split()
    wrong = hf(home, "safefilter", "run")
    assert wrong.returncode == 2
    assert "fix: start with an example: hf safefilter run --example" in wrong.stderr


def test_hf_lists_it_among_its_commands(home):
    said = " ".join(hf(home, "--help").stdout.split())
    assert "safefilter" in said and "me/hf-safefilter" in said


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("/usr/bin/hf-safefilter", "hf-safefilter run -h"),
        ("/home/me/.local/share/hf/extensions/hf-safefilter/venv/bin/hf-safefilter", "hf safefilter run -h"),
    ],
)
def test_commands_in_messages_are_written_as_the_program_was_called(monkeypatch, script, said):
    monkeypatch.setattr(sys, "argv", [script, "run"])
    assert wording.as_called("hf-safefilter run -h") == said
    assert (
        wording.as_called("a hf-safefilterish word, 'hf_safefilter[train]'")
        == "a hf-safefilterish word, 'hf_safefilter[train]'"
    )
