"""The folder for a Space: it starts as a Space starts it, and its README says so to the Hub."""

import contextlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from hf_safefilter.review.review_page import document
from hf_safefilter.storage.artifacts import store_root

KEYS = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "pinned"}
"""Those of the Hub's reference of Space configuration that are used."""

SPACE = Path(__file__).parents[2] / "examples" / "space"
TOKEN = "0123456789abcdef"


def test_the_front_matter_names_what_is_there():
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert set(values) == KEYS and isinstance(values["python_version"], str)  # without it the Hub takes an older one
    project = tomllib.loads((SPACE.parents[1] / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(values["python_version"])
    assert values["sdk"] == "gradio" and (SPACE / values["app_file"]).is_file()
    gradio = pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'hf_safefilter[review]'")
    assert values["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0] == "6"
    assert (SPACE / "requirements.txt").read_text() == "hf_safefilter[review]\n"


@contextlib.contextmanager
def app(folder, **variables):
    """The process of `app.py` in a folder, on a machine with another store than this one."""
    own = {name: value for name, value in os.environ.items() if name != "HF_SAFEFILTER_CACHE"}
    words = [sys.executable, folder / "app.py"]
    process = subprocess.Popen(words, env=own | variables, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def with_a_store(folder, scored):
    """A copy of the folder, with the rows and those parts of the store that its README asks for."""
    shutil.copytree(SPACE, folder)
    shutil.copytree(scored, folder / "scored")
    for kind in ("references", "probe", "ranks"):
        shutil.copytree(store_root() / kind, folder / "store" / kind)
    return folder


def test_it_answers_under_the_name_of_the_space_to_those_with_the_token(scored, tmp_path):
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'hf_safefilter[review]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    space = {"SYSTEM": "spaces", "SPACE_ID": "me/rows", "SPACE_HOST": "me-rows.hf.space"}
    place = space | {"GRADIO_SERVER_PORT": port, "GRADIO_SERVER_NAME": "0.0.0.0", "REVIEW_TOKEN": TOKEN}
    folder = with_a_store(tmp_path / "space", scored[0])
    rows = {"SCORED": str(folder / "scored"), "COLUMN": "probe_score", "DECISIONS": str(tmp_path / "new" / "d.jsonl")}
    with app(folder, **place, **rows, HF_HOME=str(tmp_path / "home")) as process:
        said = ""
        while "review page" not in said and (line := process.stderr.readline()):
            said += line
        assert f"https://me-rows.hf.space/?review={TOKEN}" in said, said
        address = f"http://127.0.0.1:{port}/"
        asked = urllib.request.Request(f"{address}?review={TOKEN}", headers={"Host": "me-rows.hf.space"})
        with urllib.request.urlopen(asked) as page:
            assert page.read().decode() == document()
            assert "frame-ancestors https://huggingface.co" in page.headers["content-security-policy"]
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(urllib.request.Request(asked.full_url, headers={"Host": "evil.example"}))
        headers = {"Host": "me-rows.hf.space", "X-Review-Token": TOKEN}
        with urllib.request.urlopen(urllib.request.Request(f"{address}review/row/3", headers=headers)) as row:
            assert len(json.load(row)["references"]["unsafe"]) == 5


@pytest.mark.parametrize("missing", ["store", "bucket"])
def test_it_does_not_start_without_what_it_needs_and_says_what_that_is(scored, tmp_path, missing):
    folder, log = with_a_store(tmp_path / "space", scored[0]), tmp_path / "data" / "decisions.jsonl"
    if missing == "store":
        shutil.rmtree(folder / "store" / "references")
    else:
        log.parent.touch()
    rows = {"SCORED": str(folder / "scored"), "COLUMN": "probe_score", "DECISIONS": str(log)}
    with app(folder, **rows, HF_HOME=str(tmp_path / "home")) as process:
        said = process.stderr.read()
        assert process.wait() != 0
    reason = {"store": "MissingError: references", "bucket": f"File exists: '{log.parent}'"}
    assert reason[missing] in said


def test_a_folder_with_a_decision_names_no_column(monkeypatch):
    monkeypatch.setenv("COLUMN", "")
    assert runpy.run_path(str(SPACE / "app.py"))["COLUMN"] is None
