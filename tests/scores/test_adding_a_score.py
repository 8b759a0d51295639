"""One new file and one line: recipe, shell, `compare`, cross-validation and contract know the score then."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scores.added_score import FarthestScore
from stand_in import StandIn, safe_rows, unsafe_rows

from hf_safefilter.errors import OptionError
from hf_safefilter.locate.cross_validation import choose_layer, compares_with_references
from hf_safefilter.recipe import Recipe
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores import METHODS, make, make_score, method

TESTS = str(Path(__file__).parents[1])
LINE = "scores.added_score:FarthestScore"
BODY = {
    "data": {"license": "mit", "source": "a test"},
    "model": "toy",
    "methods": "farthest",
    "select": {"drop_count": 1},
}


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(METHODS, "farthest", LINE)


def test_without_the_line_nobody_knows_it():
    with pytest.raises(OptionError, match="no method 'farthest'"):
        method("farthest")
    with pytest.raises(OptionError, match="no method 'farthest'"):
        Recipe.read(BODY)


def test_a_recipe_takes_it(added):
    assert Recipe.read(BODY).decided_by == "farthest"


def test_it_is_made_by_name_and_tried_on_references(added):
    index = ReferenceIndex.build(unsafe_rows(12), safe_rows(12), StandIn([2]), license="mit", source="tests")
    assert make("farthest", references=index, layer=2) == FarthestScore(index, 2)
    assert make_score("farthest", {}, references=index, layer=2) == FarthestScore(index, 2)
    assert compares_with_references("farthest")
    assert choose_layer(index, methods=("farthest",)).method == "farthest"


def shell(code, *words):
    """A program in which the line stands, called with these words."""
    line = (
        f"import sys; sys.path.insert(0, {TESTS!r})\n"
        f"from hf_safefilter.scores import METHODS\nMETHODS['farthest'] = {LINE!r}\n"
    )
    done = subprocess.run([sys.executable, "-c", line + code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


MAIN = "from hf_safefilter.cli import main\nmain()"


def test_the_shell_lists_and_completes_it():
    assert "farthest" in shell(MAIN, "score", "--help")
    listed = json.loads(shell(MAIN, "--format", "json", "methods"))["methods"]
    assert {"name": "farthest", "class": "FarthestScore", "measures": FarthestScore.MEASURES,
            "requires": "references", "source": "the tests"} in listed  # fmt: skip
    code = (
        "import typer\nfrom hf_safefilter.cli import app\n"
        "command = typer.main.get_command(app).commands['score']\n"
        "option = next(one for one in command.params if one.name == 'method')\n"
        "print([item.value for item in option.shell_complete(None, 'far')])"
    )
    assert shell(code).strip() == "['farthest']"


def test_compare_scores_by_it(added, tmp_path):
    from datasets import Dataset

    from hf_safefilter import EmbedLayers, compare_methods
    from hf_safefilter.toy.corpus import mixed_rows, reference_rows

    embed = EmbedLayers("toy", [4])
    unsafe, safe = reference_rows(12, 3)
    index = ReferenceIndex.build(unsafe, safe, embed, license="cc0-1.0", source="toy corpus")
    rows = Dataset.from_list(mixed_rows(40, 0.25, 3))
    found = compare_methods(rows, ["farthest"], embed, index, label="label")
    assert "farthest" in [entry.method for entry in found.entries]
    assert np.isfinite(found.scored["farthest_score"]).all()


def test_the_readme_names_every_method_once():
    """What each measures stands in the guide, which `tests/docs` compares with the classes."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| reads | methods") : text.index("Layer k is the output")]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(METHODS)
