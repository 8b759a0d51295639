"""Any configuration, tokenizer file, template or weights: the model is read, or a sentence says why not."""
# ruff: noqa: E501

import json
import shutil

import pytest
import torch
from fuzz.conftest import MANY
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import save_small_model

from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import SafefilterError
from hf_safefilter.model import load

strange = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.sampled_from([0, 1, -1, 3, 10**9, 0.5, float("nan"), "", "x", "llama", "4"]),
    st.lists(st.integers(-3, 3), max_size=4), st.dictionaries(st.text(max_size=5), st.integers(-3, 3), max_size=2), st.text(max_size=5),
)  # fmt: skip
PIECES = ["{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if loop.first %}", "{% endif %}",
          "{{ x }}", "{{ 1/0 }}", "{{ messages[9].content }}", "{{ m.content * 10**7 }}", "{% for i in range(9999) %}", "{{ bos_token }}",
          "{{ raise_exception('no') }}", "{% set m = 3 %}", "{{", "}}", "{%", "<|user|>", "{{ m|tojson }}", "{{ m.content|trim }}"]  # fmt: skip


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("small"))


@st.composite
def damages(draw):
    """What is changed in which file: values of keys, or raw bytes."""
    name = draw(
        st.sampled_from(
            ["config.json"] * 4
            + ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"]
        )
    )
    if name == "chat_template.jinja":
        return name, "text", "".join(draw(st.lists(st.sampled_from(PIECES), max_size=8)))
    if name == "model.safetensors" or draw(st.integers(0, 4)) == 0:
        return name, "bytes", (draw(st.floats(0, 1)), draw(st.binary(max_size=8)))
    return name, "keys", draw(st.lists(st.tuples(st.integers(0, 99), strange), min_size=1, max_size=2))


@settings(max_examples=MANY or 50)
@given(damage=damages())
def test_a_damaged_model(small, tmp_path_factory, damage):
    own = shutil.copytree(small, tmp_path_factory.mktemp("model") / "m")
    name, kind, change = damage
    path = own / name
    if kind == "text":
        path.write_text(change)
    elif kind == "bytes":
        content = path.read_bytes()
        at = int(change[0] * len(content))
        path.write_bytes(content[:at] + change[1] + (content[at + len(change[1]) :] if change[1] else b""))
    else:
        body = json.loads(path.read_text())
        for number, value in change:
            body[list(body)[number % len(body)]] = value
        path.write_text(json.dumps(body))
    try:
        EmbedLayers(str(own), layers=[2])({"prompt": ["How are you?"], "response": ["Fine."]})
    except SafefilterError as error:
        assert error.fix
    finally:
        load._trunks.clear()
        for table in (load.model_config, load.tokenizer):
            table.cache_clear()
        shutil.rmtree(own.parent)
    assert torch.is_grad_enabled()
