"""The folder for a Space: it starts as a Space starts it, and its README says so to the Hub."""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from hf_safefilter.review.review_page import document

SPACE = Path(__file__).parents[2] / "examples" / "space"
TOKEN = "0123456789abcdef"


def test_the_front_matter_names_what_is_there():
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["sdk"] == "gradio" and (SPACE / values["app_file"]).is_file()
    gradio = pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'hf_safefilter[review]'")
    assert values["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0] == "6"
    assert (SPACE / "requirements.txt").read_text() == "hf_safefilter[review]\n"


def test_it_answers_under_the_name_of_the_space_to_those_with_the_token(scored, tmp_path):
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'hf_safefilter[review]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    space = {"SYSTEM": "spaces", "SPACE_ID": "me/rows", "SPACE_HOST": "me-rows.hf.space"}
    place = space | {"GRADIO_SERVER_PORT": port, "REVIEW_TOKEN": TOKEN}
    rows = {"SCORED": str(scored[0]), "COLUMN": "probe_score", "DECISIONS": str(tmp_path / "decisions.jsonl")}
    process = subprocess.Popen(
        [sys.executable, SPACE / "app.py"], env=os.environ | place | rows, stderr=subprocess.PIPE, text=True
    )
    try:
        said = ""
        while "review page" not in said and (line := process.stderr.readline()):
            said += line
        assert f"https://me-rows.hf.space/?review={TOKEN}" in said, said
        address = f"http://127.0.0.1:{port}/?review={TOKEN}"
        asked = urllib.request.Request(address, headers={"Host": "me-rows.hf.space"})
        with urllib.request.urlopen(asked) as page:
            assert page.read().decode() == document()
            assert "frame-ancestors https://huggingface.co" in page.headers["content-security-policy"]
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
