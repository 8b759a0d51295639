"""Recipes that are broken, hostile or the wrong file: each ends in a sentence, before any work."""

import pytest

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.errors import MissingError, ModelError, OptionError
from hf_safefilter.model.source import local_folder
from hf_safefilter.recipe import Recipe
from hf_safefilter.references.open import open_references

GOOD = "data: {license: mit, source: tests}\nmodel: toy\nselect: {drop_count: 1}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("? [a, b]\n: 1\n" + GOOD, "a key is not a plain word"),
        (GOOD + "extra: " + "[" * 40 + "]" * 40, "nested more than 16 deep"),
        (GOOD + "extra: " + "{a: " * 5000 + "1" + "}" * 5000, "nested more than 16 deep"),
        ("data: &d {license: mit, source: tests, columns: *d}\n", "uses an alias"),
        ("a: &a [x]\nb: &b [*a, *a]\n" + GOOD, "uses an alias"),
        (GOOD.replace("drop_count: 1", "drop_count: " + "9" * 5000), "a value that is no value"),
        (GOOD.replace("drop_count: 1", "drop_fraction: " + "9" * 4000), "is not valid|cannot be written"),
        ("x" * 2_000_000, "2000000 characters"),
        (GOOD + "\x00", "is not YAML"),
        ("- just\n- a list\n", "not a mapping"),
    ],
    ids=lambda value: value[:12].strip() if isinstance(value, str) else "",
)
def test_a_strange_recipe_is_a_sentence(text, says):
    with pytest.raises(OptionError, match=says):
        Recipe.parse(text)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(OptionError, match="not UTF-8 text"):
        Recipe.read(tmp_path / "recipe.yaml")


def test_options_that_hold_themselves():
    options: dict = {}
    options["self"] = options
    body = {"data": {"license": "mit", "source": "x"}, "model": "toy", "select": {"drop_count": 1},
            "methods": [{"name": "larf", "options": options}]}  # fmt: skip
    with pytest.raises(OptionError, match="cannot be written down|not valid"):
        Recipe.read(body)


LONG = "x" * 10_000


@pytest.mark.parametrize("name", [LONG, f"a/{LONG}", "a\x00b", "~nobody-here/rows.jsonl"])
def test_a_path_that_no_file_system_takes(name):
    with pytest.raises(MissingError, match="no file, folder or Hub data set"):
        load_rows(f"{name}.jsonl")
    with pytest.raises(MissingError, match="no recipe"):
        Recipe.read(name)
    with pytest.raises(ModelError, match="neither a local folder nor a Hub id"):
        local_folder(f"{name}//")
    text = GOOD.replace("license: mit", f"path: {name!r}, license: mit") if "\x00" not in name else GOOD
    Recipe.parse(text).portable()


def test_references_at_such_a_path(monkeypatch):
    monkeypatch.setattr(
        "hf_safefilter.references.index.ReferenceIndex.from_hub", lambda name, revision: ("asked the Hub", len(name))
    )
    assert open_references(LONG) == ("asked the Hub", 10_000)
