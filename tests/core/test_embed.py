"""EmbedLayers: the same vectors in batches, row by row and from transformers; every row accounted for."""

import ast
import inspect
import json
import logging
import time
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, IterableDataset
from small_models import ARCHITECTURES, save_small_model

from hf_safefilter import embed as embed_module
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import IntegrityError, ModelError, OptionError
from hf_safefilter.model import forward, load

CHAT = [
    {"prompt": "Name a flower.", "completion": "A crocus blooms early."},
    {"prompt": "What runs through Paris?", "completion": "The Seine."},
    {
        "prompt": "How is bread baked? Tell me every step.",
        "completion": "Mix flour, water and salt, knead, rest, bake.",
    },
    {"prompt": "Name a flower.", "completion": "A crocus blooms early."},
]
PLAIN = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices run fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    load._trunks.clear()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("llama"))


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def by_hand(folder, rows, layer, template=None):
    """The last position of `output_hidden_states`, one row at a time, through transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = getattr(model, "language_model", model)
    model.config.tie_last_hidden_states = False
    vectors = []
    for row in rows:
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        ids = tokenizer.apply_chat_template(messages, chat_template=template, return_tensors="pt")
        with torch.no_grad():
            vectors.append(model(ids["input_ids"], output_hidden_states=True).hidden_states[layer][0, -1].numpy())
    return np.array(vectors)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_from_text_to_vectors_as_transformers_does_it_row_by_row(name, padding_side, tmp_path):
    folder = save_small_model(tmp_path, name, padding_side)
    vectors, found, reasons = EmbedLayers(str(folder), layers=[1, 4]).vectors(CHAT)
    assert reasons == [""] * 4 and len(found) == 4
    for layer in (1, 4):
        assert vectors[layer].dtype == np.float32
        np.testing.assert_allclose(vectors[layer], by_hand(folder, CHAT, layer), rtol=1e-4, atol=1e-5)


def test_new_columns_only_in_fixed_names_and_dtypes(llama):
    step = EmbedLayers(str(llama), layers=[0, 2, "norm"])
    given = columns(CHAT)
    found = step(given)
    assert tuple(found) == step.produces()
    assert step.produces() == ("row_id", "truncated", "unscorable", "emb_layer_0", "emb_layer_2", "emb_layer_norm")
    assert given == columns(CHAT), "the rows are left alone"
    assert all(found[name].dtype == np.float16 and found[name].shape == (4, 32) for name in step.produces()[3:])
    assert found["truncated"].tolist() == [False] * 4 and list(found["unscorable"]) == [""] * 4
    assert found["row_id"][0] == found["row_id"][3] != found["row_id"][1]
    np.testing.assert_allclose(found["emb_layer_2"], step.vectors(CHAT)[0][2], rtol=1e-3, atol=1e-3)


def test_row_by_row_is_the_same_as_batched(llama):
    step = EmbedLayers(str(llama), layers=[3])
    batched = step(columns(CHAT))
    for at, row in enumerate(CHAT):
        alone = step(row)
        assert alone["row_id"] == batched["row_id"][at]
        np.testing.assert_allclose(alone["emb_layer_3"], batched["emb_layer_3"][at], rtol=2e-3, atol=2e-3)


def test_rows_that_cannot_be_read_keep_their_place(llama):
    rows = [CHAT[0], {"prompt": "", "completion": "An answer to nothing."}, {"prompt": "A question.", "completion": ""}]
    found = EmbedLayers(str(llama), layers=[1, 2])(columns([*rows, CHAT[1]]))
    assert list(found["unscorable"]) == ["", "empty_prompt", "empty_response", ""]
    for name in ("emb_layer_1", "emb_layer_2"):
        assert np.isnan(found[name][1:3]).all() and np.isfinite(found[name][[0, 3]]).all()


def test_too_long_a_row_is_cut_and_marked(llama):
    rows = [CHAT[0], {"prompt": "Tell me.", "completion": "again and again " * 60}]
    found = EmbedLayers(str(llama), layers=[1], max_length=40)(columns(rows))
    assert found["truncated"].tolist() == [False, True]
    assert np.isfinite(found["emb_layer_1"]).all()


def test_the_model_itself_sets_the_limit(llama):
    rows = [{"prompt": "Tell me.", "completion": "again and again " * 200}]
    assert load.max_tokens(EmbedLayers(str(llama), layers=[1])._key()) == 256
    assert EmbedLayers(str(llama), layers=[1])(columns(rows))["truncated"].tolist() == [True]


@pytest.mark.parametrize("position", ["last", "last_content", "mean_response", "last_prompt"])
def test_every_position_gives_vectors_of_its_own(llama, position):
    ours = EmbedLayers(str(llama), layers=[2], position=position).vectors(CHAT[:3])[0][2]
    other = EmbedLayers(str(llama), layers=[2], position="last" if position != "last" else "last_prompt")
    assert np.isfinite(ours).all()
    assert np.abs(ours - other.vectors(CHAT[:3])[0][2]).max() > 1e-3


def test_overflow_is_clamped_and_counted(llama, monkeypatch, caplog):
    monkeypatch.setattr(
        forward, "read_layers", lambda *_: {1: np.array([[7e4, -1e9, 2.0], [1.0, 2.0, 3.0]], np.float32)}
    )
    with caplog.at_level(logging.WARNING):
        found = EmbedLayers(str(llama), layers=[1])(columns(CHAT[:2]))
    assert found["emb_layer_1"].tolist() == [[65504.0, -65504.0, 2.0], [1.0, 2.0, 3.0]]
    assert "2 values beyond the range of float16 were clamped" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_no_vector(llama, monkeypatch, bad):
    states = {1: np.ones((3, 4), np.float32), 2: np.ones((3, 4), np.float32)}
    states[2][1, 3] = bad
    monkeypatch.setattr(forward, "read_layers", lambda *_: states)
    found = EmbedLayers(str(llama), layers=[1, 2])(columns(CHAT[:3]))
    assert list(found["unscorable"]) == ["", "non_finite", ""]
    assert np.isnan(found["emb_layer_1"][1]).all() and np.isnan(found["emb_layer_2"][1]).all()
    assert np.isfinite(found["emb_layer_1"][[0, 2]]).all()


def test_a_model_whose_states_overflow_yields_no_vectors(tmp_path):
    folder = save_small_model(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = EmbedLayers(str(folder), layers=[1, 2])(columns(CHAT))
    assert set(found["unscorable"]) == {"non_finite"} and np.isnan(found["emb_layer_1"]).all()
    assert set(EmbedLayers(str(folder), layers=[1])(columns(CHAT))["unscorable"]) == {""}


def test_no_rows_give_empty_columns_of_the_right_width(llama, monkeypatch):
    monkeypatch.setattr(load, "trunk", lambda *_: pytest.fail("a model was loaded for no rows"))
    found = EmbedLayers(str(llama), layers=[1])({"prompt": [], "completion": []})
    assert found["emb_layer_1"].shape == (0, 32) and found["emb_layer_1"].dtype == np.float16
    assert all(len(values) == 0 for values in found.values())


def test_columns_of_no_known_shape_are_mapped(llama):
    rows = [{"ask": row["prompt"], "say": row["completion"]} for row in CHAT]
    mapped = EmbedLayers(str(llama), layers=[1], columns={"prompt": "ask", "response": "say"})
    assert np.array_equal(
        mapped(columns(rows))["emb_layer_1"], EmbedLayers(str(llama), layers=[1])(columns(CHAT))["emb_layer_1"]
    )


def test_a_template_of_ones_own(llama):
    step = EmbedLayers(str(llama), layers=[2], chat_template=PLAIN)
    np.testing.assert_allclose(step.vectors(CHAT)[0][2], by_hand(llama, CHAT, 2, PLAIN), rtol=1e-4, atol=1e-5)
    assert (
        step.describe()["chat_template_digest"]
        != EmbedLayers(str(llama), layers=[2]).describe()["chat_template_digest"]
    )


# What a step is


def test_construction_pins_what_decides_the_vectors(llama):
    step = EmbedLayers(str(llama), [2, "norm"], columns={"response": "b", "prompt": "a"})
    assert step.revision.startswith("sha256:") and step.dtype == "float32"
    assert step.layers == (2, "norm") and step.columns == (("prompt", "a"), ("response", "b"))
    assert step == EmbedLayers(llama, (2, "norm"), revision=step.revision, columns={"prompt": "a", "response": "b"})
    with pytest.raises(FrozenInstanceError):
        step.dtype = "float16"
    with pytest.raises(TypeError):
        EmbedLayers(str(llama), [2], "main")


def test_the_record_is_json_and_makes_the_step_again(llama):
    step = EmbedLayers(str(llama), [2], position="mean_response", columns={"prompt": "a", "response": "b"})
    record = json.loads(json.dumps(step.record()))
    assert record.pop("step") == "EmbedLayers" and record.pop("algorithm") == 1
    assert EmbedLayers(**record) == step
    told = json.loads(json.dumps(step.describe()))
    assert told["hidden_size"] == 32 and told["blocks"] == 4


def test_constructing_reads_no_weights(llama, monkeypatch):
    monkeypatch.setattr(load, "_load", lambda *_, **__: pytest.fail("weights were read"))
    EmbedLayers(str(llama), layers=[1]).describe()


@pytest.mark.parametrize(
    ("options", "error", "say"),
    [
        ({"layers": [5]}, OptionError, "layers 0 .* to 4"),
        ({"layers": []}, OptionError, "no layer"),
        ({"layers": [1], "dtype": "int8"}, OptionError, "`dtype=int8` is not known"),
        ({"layers": [1], "position": "first"}, OptionError, "position=first.*\n.*mean_response"),
        ({"layers": [1], "max_length": 0}, OptionError, "max_length=0"),
        ({"layers": [1], "device": "abacus"}, OptionError, "`device='abacus'` is not known"),
        ({"layers": [1], "revision": "main"}, OptionError, "no revision 'main'"),
        ({"layers": [1], "revision": "sha256:" + "0" * 64}, IntegrityError, "files have changed"),
    ],
)
def test_options_that_make_no_sense(llama, options, error, say):
    with pytest.raises(error, match=say):
        EmbedLayers(str(llama), **options)


def test_a_model_without_a_template_asks_for_one(tmp_path):
    folder = save_small_model(tmp_path, "bert")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises((OptionError, ModelError), match="chat_template="):
        EmbedLayers(str(folder), layers=[1])(columns(CHAT))
    assert np.isfinite(EmbedLayers(str(folder), layers=[1], chat_template="plain")(columns(CHAT))["emb_layer_1"]).all()


# Data sets


def test_the_column_is_fixed_size_float16_without_being_told(llama):
    step = EmbedLayers(str(llama), layers=[1])
    rows = Dataset.from_list(CHAT)
    for found in (rows.map(step, batched=True), rows.map(step), rows.with_format("arrow").map(step, batched=True)):
        feature = found.features["emb_layer_1"]
        assert (feature.feature.dtype, feature.length) == ("float16", 32)
        assert found.features["truncated"].dtype == "bool" and found.features["unscorable"].dtype == "string"
        assert found.features["row_id"].dtype == "string"


def test_a_stream_gives_the_same(llama):
    step = EmbedLayers(str(llama), layers=[1])
    stream = IterableDataset.from_generator(lambda: iter(CHAT)).map(step, batched=True, batch_size=3)
    table = Dataset.from_list(CHAT).map(step, batched=True)
    for streamed, held in zip(stream, table, strict=True):
        assert streamed["row_id"] == held["row_id"]
        np.testing.assert_allclose(streamed["emb_layer_1"], held["emb_layer_1"], rtol=2e-3, atol=2e-3)


# Attention, and work beside


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_named_attention_reads_the_same_and_pads(llama, attn):
    expected = EmbedLayers(str(llama), layers=[2]).vectors(CHAT)[0][2]
    step = EmbedLayers(str(llama), layers=[2], attn=attn)
    np.testing.assert_allclose(step.vectors(CHAT)[0][2], expected, rtol=1e-4, atol=1e-5)
    held = next(trunk for (_, _, _, named), trunk in load._trunks.items() if named == attn)
    assert held.model.config._attn_implementation == attn and held.packs is False
    assert step.record()["attn"] == attn


@pytest.mark.parametrize(
    ("attn", "said"),
    [("fastest", "is not known"), ("flash_attention_2", "for GPUs"), ("flash_attention_3", "for GPUs")],
)
def test_an_attention_that_is_not_to_be_had_is_refused_at_once(llama, attn, said):
    with pytest.raises(OptionError, match=said):
        EmbedLayers(str(llama), layers=[2], attn=attn)


def test_an_attention_that_is_not_installed_is_not_fetched(monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: False)
    with pytest.raises(OptionError, match="not installed here"):
        load.pick_attn("flash_attention_2", "bfloat16", torch.device("cuda"))


def test_rows_are_tokenised_while_those_before_them_are_read(llama, monkeypatch):
    rows = [{"prompt": f"Name {at} flowers.", "completion": "A crocus. " * (1 + at % 5)} for at in range(20)]
    expected, _, reasons = EmbedLayers(str(llama), layers=[2]).vectors([*rows, {"prompt": "", "completion": "x"}])
    happened = []
    reading, tokenising = forward.read_layers, EmbedLayers._tokenise

    def read(trunk, tokens, layers):
        deadline = time.monotonic() + 10
        while happened.count("tokenised") < min(3, happened.count("read") + 2) and time.monotonic() < deadline:
            time.sleep(0.01)  # for what runs beside it
        happened.append("read")
        return reading(trunk, tokens, layers)

    def tokenise(step, found):
        done = tokenising(step, found)
        happened.append("tokenised")
        return done

    monkeypatch.setattr("hf_safefilter.embed._TOKENISED_AT_ONCE", 7)
    monkeypatch.setattr(forward, "read_layers", read)
    monkeypatch.setattr(EmbedLayers, "_tokenise", tokenise)
    found, _, again = EmbedLayers(str(llama), layers=[2]).vectors([*rows, {"prompt": "", "completion": "x"}])
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-5)
    assert again == reasons and again[-1]
    assert happened == ["tokenised", "tokenised", "read", "tokenised", "read", "read"]


def test_type_checkers_see_the_options_that_the_step_has():
    """The constructor for type checkers is written by hand, since it accepts more than the fields hold."""
    tree = ast.parse(inspect.getsource(embed_module))
    written = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = [argument.arg for argument in (*written.args.args, *written.args.kwonlyargs)]
    assert set(names) == {"self", *inspect.signature(EmbedLayers).parameters}
    assert names[:3] == ["self", *list(inspect.signature(EmbedLayers).parameters)[:2]]
