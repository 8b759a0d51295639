import json
import re

import jsonschema
import pytest
import yaml
from huggingface_hub import DatasetCard

from hf_safefilter.errors import MissingError, OptionError
from hf_safefilter.recipe import EXAMPLE, Recipe

PLAIN = {
    "data": {"license": "mit", "source": "a barn"},
    "model": {"name": "toy"},
    "select": {"drop_fraction": 0.1},
}


def test_the_printed_example_is_a_recipe_and_fits_its_schema():
    recipe = Recipe.parse(EXAMPLE)
    assert recipe.decided_by == "largest_deviation"
    jsonschema.validate(recipe.to_dict(), json.loads(Recipe.schema_json()))


def test_a_recipe_survives_yaml_and_defaults_are_left_out():
    recipe = Recipe.read(PLAIN | {"methods": ["larf", {"name": "nearest", "options": {"k": 3}}], "layer": 3})
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert "position" not in recipe.to_yaml()
    assert recipe.decided_by == "rank_average"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 3}, "did you mean 'layer'"),
        ({"data": {"license": "mit", "source": "x", "pth": "y"}}, "data.pth.*did you mean 'path'"),
        ({"data": {"license": "", "source": "x"}}, "data.license"),
        ({"data": {"license": "mit"}}, "data.source"),
        ({"methods": ["lrf"]}, "methods.0.name"),
        ({"methods": []}, "name at least one"),
        ({"methods": ["larf", "larf"]}, "named twice"),
        ({"layer": -1}, "layer"),
        ({"layer": "13"}, "layer"),
        ({"select": {}}, "exactly one of"),
        ({"select": {"drop_fraction": 0.1, "drop_count": 3}}, "given: drop_fraction, drop_count"),
        ({"select": {"drop_fraction": "0.1"}}, "valid number"),
        ({"select": {"drop_fraction": 0.1, "by": "nearest"}}, "not among the methods"),
        ({"references": {"path": "starter", "unsafe": "u"}}, "either path, or"),
        ({"references": {"unsafe": "u", "safe": "s"}}, "go together"),
        ({"references": {}}, "either path, or"),
    ],
)
def test_what_does_not_fit_is_named(change, says):
    with pytest.raises(OptionError) as error:
        Recipe.read(PLAIN | change)
    assert re.search(says, str(error.value))


def test_yaml_that_is_broken_doubled_or_no_mapping_is_refused(tmp_path):
    for text in ("a: 1\na: 2", "[", "- 1", "data: !!python/object/apply:os.system [echo]"):
        with pytest.raises(OptionError):
            Recipe.parse(text)
    with pytest.raises(MissingError, match="--example"):
        Recipe.read(tmp_path / "none.yaml")


def test_the_key_on_is_a_word_and_not_true():
    """YAML 1.1 reads on, off, yes and no as truth values, keys too; values keep their meaning."""
    text = "data: {license: mit, source: s}\nmodel: toy\nmethods: [larf]\n"
    recipe = Recipe.parse(text + "select:\n  on: pair_shift\n  action: switch\n  drop_count: 1\n")
    assert (recipe.select.on, recipe.decided_column) == ("pair_shift", "larf_pair_shift")
    assert Recipe.parse(recipe.to_yaml()) == recipe
    options = "methods: {name: larf, options: {pairs: off, standardize: yes}}\nselect: {drop_count: 1}\n"
    (method,) = Recipe.parse(text.replace("methods: [larf]\n", options)).methods
    assert method.options == {"pairs": False, "standardize": True}
    with pytest.raises(OptionError, match="given twice"):
        Recipe.parse("on: 1\non: 2")


def test_what_a_card_shows_holds_no_local_path(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    given = PLAIN | {
        "data": {"path": str(tmp_path / "rows.jsonl"), "license": "mit", "source": "s"},
        "model": {"name": str(tmp_path)},
    }
    shown = Recipe.read(given).portable()
    assert shown["data"]["path"] == "rows.jsonl"
    assert str(tmp_path) not in json.dumps(shown)
    assert Recipe.read(shown).data.path == "rows.jsonl"


def test_a_recipe_is_read_back_from_a_card(tmp_path):
    body = yaml.safe_dump({"license": "mit", "safefilter": {"recipe": Recipe.read(PLAIN).to_dict()}})
    DatasetCard(f"---\n{body}---\n# Rows\n").save(tmp_path / "README.md")
    assert Recipe.from_card(str(tmp_path)) == Recipe.read(PLAIN)
    DatasetCard("---\nlicense: mit\n---\n# Rows\n").save(tmp_path / "README.md")
    with pytest.raises(MissingError, match="no recipe"):
        Recipe.from_card(str(tmp_path))


def test_a_card_names_the_methods_whose_defaults_may_change():
    shown = Recipe.read(PLAIN).portable()
    assert shown["methods"] == [{"name": "ensemble"}, {"name": "shift"}]
    assert shown["select"]["by"] == "largest_deviation" and Recipe.read(shown).decided_by == "largest_deviation"
    named = Recipe.read(PLAIN | {"methods": [{"name": "nearest", "options": {"k": 3}}, "larf"]}).portable()
    assert named["methods"][0]["options"] == {"k": 3} and named["select"]["by"] == "rank_average"
    switched = Recipe.read(PLAIN | {"methods": "larf", "select": {"drop_count": 1, "on": "pair_shift"}}).portable()
    assert Recipe.read(switched).decided_column == "larf_pair_shift"


def test_paths_of_the_selection_are_not_published():
    body = yaml.safe_load(EXAMPLE)
    body["select"] |= {"decisions": "/home/me/d.jsonl", "add_refusals": 3, "refusals": "/home/me/r.jsonl"}
    portable = Recipe.read(body).portable()["select"]
    assert (portable["decisions"], portable["refusals"]) == ("d.jsonl", "r.jsonl")
