"""Any recipe is a recipe, or a sentence says why it is none."""
# ruff: noqa: E501

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_safefilter.errors import SafefilterError
from hf_safefilter.recipe import EXAMPLE, Recipe

GOOD = yaml.safe_load(EXAMPLE)
words = [
    "",
    "auto",
    "norm",
    "toy",
    "starter",
    "larf",
    "rank_average",
    "length",
    "mask",
    "switch",
    "pair_shift",
    "\x00",
    "\ud800",
    "x" * 999,
]
scalars = st.one_of(
    st.sampled_from(words), st.text(max_size=9), st.none(), st.booleans(), st.integers(), st.floats(), st.dates()
)
keys = st.one_of(
    st.sampled_from(
        ["path", "license", "source", "name", "options", "by", "drop_fraction", "drop_count", "threshold", "label", "rule", "columns",
         "methods", "max_length", "window", "layer", "layers", "method", "on", "action", "split", "streaming", "known_good", "unsafe"]
    ),
    st.text(max_size=5), st.integers(), st.none(),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


@st.composite
def recipes(draw):
    """The example with some of it exchanged."""
    body = json.loads(json.dumps(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from([*body, "evaluate", "locate", "strange"]))
        if isinstance(body.get(part), dict) and draw(st.booleans()):
            body[part][draw(keys)] = draw(values)
        else:
            body[part] = draw(values)
    return body


@given(body=recipes())
def test_a_mapping(body):
    try:
        recipe = Recipe.read(body)
    except SafefilterError as error:
        assert str(error).strip()
        return
    assert Recipe.parse(recipe.to_yaml()) == recipe
    recipe.portable()


@given(body=recipes(), noise=st.lists(st.tuples(st.integers(0, 10**4), st.text(max_size=6)), max_size=3))
def test_a_text(body, noise):
    try:
        text = yaml.safe_dump(body, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        text = EXAMPLE
    for place, letters in noise:
        at = place % (len(text) + 1)
        text = text[:at] + letters + text[at:]
    try:
        Recipe.parse(text)
    except SafefilterError as error:
        assert str(error).strip()
