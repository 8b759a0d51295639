"""`layer: auto` in a recipe, by a search for safety layers."""

import json

import pytest

from hf_safefilter.demo import mixed_rows
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.pipeline import auto_layer
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.recipe import Recipe
from hf_safefilter.toy.corpus import heldout_prompts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    texts = {kind: [{"prompt": prompt} for prompt in heldout_prompts(kind, 40, 0)] for kind in ("benign", "harmful")}
    for name, rows in ({"rows": mixed_rows()[:80]} | texts).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {path.stem: str(path) for path in folder.iterdir()}


def recipe(files, **change):
    return Recipe.read(
        {
            "data": {"path": files["rows"], "license": "mit", "source": "the toy corpus"},
            "model": {"name": "toy"},
            "layer": "auto",
            "methods": ["saft"],
            "select": {"drop_count": 8},
        }
        | change
    )


def test_the_gap_finds_the_layer_and_the_card_says_so(files, tmp_path):
    locate = {"method": "gap", "normal": files["benign"], "malicious": files["harmful"]}
    done = purify(None, recipe(files, locate=locate))
    assert done.layer_choice.method == "gap" and done.layer_choice.layer == done.layer_choice.last + 1
    assert f"emb_layer_{done.layer_choice.layer}" in done.scored.column_names
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        f"**Layer:** {done.layer_choice.layer}, chosen by the angular gap between normal and malicious prompts" in card
    )
    assert "40 normal, 40 malicious prompts" in card
    assert done.provenance.recipe["locate"] == {"method": "gap", "normal": "benign.jsonl", "malicious": "harmful.jsonl"}


def test_no_layer_is_picked_from_noise(files):
    locate = {"method": "gap", "normal": files["benign"], "malicious": files["benign"]}
    with pytest.raises(DataError, match="no safety layers were found"):
        purify(None, recipe(files, locate=locate))


def test_the_way_is_the_one_that_suits(files, monkeypatch):
    assert auto_layer.layer_method_of(recipe(files), True) == "references"
    assert auto_layer.layer_method_of(recipe(files), False) == "scaling"
    cost, most = auto_layer.scaling_cost(recipe(files))
    assert 1e11 < cost < most
    assert auto_layer.scaling_cost(recipe(files, model={"name": "toy", "device": "xpu"})) == (cost, most)
    monkeypatch.setattr(auto_layer, "AFFORDABLE", {"cpu": cost / 2, "mps": cost / 2, "cuda": cost / 2})
    assert auto_layer.layer_method_of(recipe(files), False) == "gap"
    assert auto_layer.layer_method_of(recipe(files, locate={"method": "bounds"}), False) == "bounds"


def test_a_way_that_is_none_is_refused(files):
    with pytest.raises(OptionError, match="locate.method"):
        recipe(files, locate={"method": "guess"})
    with pytest.raises(OptionError, match="did you mean 'over_refusal'"):
        recipe(files, locate={"over_refusals": "x"})


def test_prompts_that_the_method_does_not_ask_are_refused(files):
    for method, kind in (("gap", "over_refusal"), ("scaling", "normal"), ("references", "malicious")):
        with pytest.raises(OptionError, match=f"uses no {kind} prompts"):
            recipe(files, locate={"method": method, kind: files["benign"]})


def test_a_search_that_was_killed_finds_its_place_again(files, monkeypatch):
    from hf_safefilter.locate import search

    asked = []

    def killed(*_, folder, **__):
        asked.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "locate_safety_layers", killed)
    for locate in ({"method": "scaling"}, {"method": "scaling"}, {"method": "bounds"},
                   {"method": "scaling", "over_refusal": files["benign"]}):  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            purify(None, recipe(files, locate=locate))
    assert asked[0] == asked[1] and len(set(asked)) == 3
    assert all(place.parent.name == "searches" for place in asked)
