"""EmbedLayers: the same vectors in batches, row by row and from transformers; every row accounted for."""

import ast
import inspect
import json
import logging
import time
from dataclasses import FrozenInstanceError
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
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
PLAIN = "{% for m in messages %}{{ m['content'] }};{% endfor %}"


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


def joined(cells):
    """The vectors of all rows of a column."""
    return np.concatenate(list(cells))


def states_by_hand(folder, rows, layer, template=None):
    """For each row: `output_hidden_states` of transformers, one row at a time, and the first token of the answer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = getattr(model, "language_model", model)
    model.config.tie_last_hidden_states = False
    found = []
    for row in rows:
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        given = {"chat_template": template, "return_tensors": "pt"}
        asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, **given)["input_ids"]
        ids = tokenizer.apply_chat_template(messages, **given)["input_ids"]
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[layer][0].numpy()
        found.append((states, asked.shape[1]))
    return found


def windows_by_hand(start, stop, width):
    """Windows of `width` tokens that begin five sixths of one apart, and one that ends at the end."""
    if stop - start <= width:
        return [(start, stop)]
    last, at, found = stop - width, start, []
    while at < last:
        found.append((at, at + width))
        at += width * 5 // 6
    return [*found, (last, stop)]


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_from_text_to_vectors_as_transformers_does_it_row_by_row(name, padding_side, tmp_path):
    folder = save_small_model(tmp_path, name, padding_side)
    read, found = EmbedLayers(str(folder), layers=[1, 4], position="mean,last,last_prompt,first_3").vectors(CHAT)
    assert read.reasons.tolist() == [""] * 4 and len(found) == 4
    assert np.diff(read.offsets).max() > 1, "a row is longer than a window"
    for layer in (1, 4):
        expected = {"": [], "_last": [], "_last_prompt": [], "_first_3": []}
        for states, start in states_by_hand(folder, CHAT, layer):
            for begin, end in windows_by_hand(start, len(states), 18):
                expected[""].append(states[begin:end].mean(axis=0))
                expected["_last"].append(states[-1])
                expected["_last_prompt"].append(states[start - 1])
                expected["_first_3"].append(states[start : start + 3].mean(axis=0))
        for position, vectors in expected.items():
            ours = read.vectors[f"{layer}{position}" if position else layer]
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, np.array(vectors), rtol=1e-4, atol=1e-5)


def test_new_columns_only_in_fixed_names_and_dtypes(llama):
    step = EmbedLayers(str(llama), layers=[0, 2, "norm"], position="mean,last_prompt")
    given = columns(CHAT)
    found = step(given)
    assert tuple(found) == step.produces()
    vectors = [f"emb_layer_{layer}{position}" for layer in (0, 2, "norm") for position in ("", "_last_prompt")]
    assert step.produces() == ("row_id", "truncated", "unscorable", "read_as", "spans", *vectors)
    assert given == columns(CHAT), "the rows are left alone"
    for name in vectors:
        assert [cell.shape for cell in found[name]] == [(len(spans), 32) for spans in found["spans"]]
        assert {cell.dtype for cell in found[name]} == {np.dtype(np.float16)}
    assert found["truncated"].tolist() == [False] * 4 and list(found["unscorable"]) == [""] * 4
    assert found["row_id"][0] == found["row_id"][3] != found["row_id"][1]
    read, _ = step.vectors(CHAT)
    for name, key in (("emb_layer_2", 2), ("emb_layer_norm_last_prompt", "norm_last_prompt")):
        np.testing.assert_allclose(joined(found[name]), read.vectors[key], rtol=1e-3, atol=1e-3)


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
    assert [bool(spans) for spans in found["spans"]] == [True, False, False, True]
    for name in ("emb_layer_1", "emb_layer_2"):
        assert [len(cell) for cell in found[name]] == [len(spans) for spans in found["spans"]]
        assert np.isfinite(joined(found[name])).all()


# What of a row is read


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a flower."},
    {"role": "assistant", "content": "A crocus."},
    {"role": "user", "content": "And a river?"},
    {"role": "assistant", "content": "The Seine."},
]


def test_each_answer_is_a_span_unless_it_is_not_trained(llama):
    untrained = [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]
    found = EmbedLayers(str(llama), layers=[2], window=None)({"messages": [TALK, untrained]})
    assert [[span["turn"] for span in spans] for spans in found["spans"]] == [[2, 4], [4]]
    assert found["spans"][1] == found["spans"][0][1:]
    np.testing.assert_allclose(found["emb_layer_2"][0][1], found["emb_layer_2"][1][0], rtol=2e-3, atol=2e-3)


def test_all_turns_may_be_read_and_then_no_token_is_left_out(llama):
    rows = {"messages": [[*TALK, {"role": "user", "content": "Thank you."}]]}
    assert list(EmbedLayers(str(llama), layers=[2])(rows)["unscorable"]) == ["unread_trailing_turn"]
    found = EmbedLayers(str(llama), layers=[2], spans="all", window=None)(rows)
    (spans,) = found["spans"]
    assert [span["turn"] for span in spans] == [0, 1, 2, 3, 4, 5]
    bounds = [(span["start"], span["stop"]) for span in spans]
    assert bounds[0][0] == 0 and all(stop == start for (_, stop), (start, _) in pairwise(bounds))
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    assert bounds[-1][1] == len(tokenizer.apply_chat_template(rows["messages"][0])["input_ids"])


def test_both_sides_of_a_preference_pair_are_read(llama):
    step = EmbedLayers(str(llama), layers=[2], window=None)
    pair = {"prompt": "Name a flower.", "chosen": "A crocus.", "rejected": "No, I will not."}
    found = step(columns([pair]))
    assert [(span["turn"], span["rejected"]) for span in found["spans"][0]] == [(1, False), (1, True)]
    alone = step(columns([{"prompt": pair["prompt"], "response": pair[side]} for side in ("chosen", "rejected")]))
    np.testing.assert_allclose(found["emb_layer_2"][0], joined(alone["emb_layer_2"]), rtol=2e-3, atol=2e-3)


LONG = {"prompt": "Tell me.", "completion": "again and again " * 60}


def test_too_long_a_row_is_read_in_pieces_to_its_end(llama):
    step = EmbedLayers(str(llama), layers=[1], max_length=40, window=9)
    found = step(columns([CHAT[0], LONG]))
    assert found["truncated"].tolist() == [False, False] and list(found["unscorable"]) == ["", ""]
    ((states, start),) = states_by_hand(llama, [LONG], 0)
    bounds = [(span["start"], span["stop"]) for span in found["spans"][1]]
    assert bounds == windows_by_hand(start, len(states), 9)
    assert np.isfinite(joined(found["emb_layer_1"])).all()


def test_too_long_a_row_may_be_cut_and_is_marked(llama):
    found = EmbedLayers(str(llama), layers=[1], max_length=40, too_long="cut", window=None)(columns([CHAT[0], LONG]))
    assert found["truncated"].tolist() == [False, True] and list(found["unscorable"]) == ["", ""]
    ((states, start),) = states_by_hand(llama, [LONG], 1)
    assert [(span["start"], span["stop"]) for span in found["spans"][1]] == [(start, 40)]
    np.testing.assert_allclose(found["emb_layer_1"][1][0], states[start:40].mean(axis=0), rtol=2e-3, atol=2e-3)


def test_too_long_a_row_may_be_dropped(llama):
    found = EmbedLayers(str(llama), layers=[1], max_length=40, too_long="drop")(columns([CHAT[0], LONG]))
    assert found["truncated"].tolist() == [False, False] and list(found["unscorable"]) == ["", "too_long"]
    assert found["spans"][1] == [] and len(found["emb_layer_1"][1]) == 0


def test_the_model_itself_sets_the_limit(llama):
    rows = [{"prompt": "Tell me.", "completion": "again and again " * 200}]
    assert load.max_tokens(EmbedLayers(str(llama), layers=[1])._key()) == 256
    assert EmbedLayers(str(llama), layers=[1], too_long="cut")(columns(rows))["truncated"].tolist() == [True]
    whole = EmbedLayers(str(llama), layers=[1])(columns(rows))
    assert whole["truncated"].tolist() == [False] and whole["spans"][0][-1]["stop"] > 256


def test_every_position_gives_vectors_of_its_own(llama):
    positions = ["mean", "last", "last_content", "last_prompt", "first_3"]
    read, _ = EmbedLayers(str(llama), layers=[2], position=",".join(positions)).vectors(CHAT[:3])
    vectors = [read.vectors[2 if position == "mean" else f"2_{position}"] for position in positions]
    for one, other in combinations(vectors, 2):
        assert np.isfinite(one).all() and np.abs(one - other).max() > 1e-3
    for position, expected in zip(positions, vectors, strict=True):
        alone, _ = EmbedLayers(str(llama), layers=[2], position=position, window=None).vectors(CHAT[:3])
        if position != "mean":  # one for each row, however many windows it has
            np.testing.assert_allclose(alone.vectors[2], expected[read.offsets[:-1]], rtol=1e-4, atol=1e-5)


def test_windows_are_of_means_alone(llama):
    assert EmbedLayers(str(llama), layers=[2], position="last").window is None
    assert EmbedLayers(str(llama), layers=[2], position="last,mean").window == 18
    assert EmbedLayers(str(llama), layers=[2], window=0) == EmbedLayers(str(llama), layers=[2], window=None)


# Numbers that are out of range


def test_overflow_is_clamped_and_counted(llama, monkeypatch, caplog):
    states = np.ones((2, 32), np.float32)
    states[0, :2] = 7e4, -1e9
    monkeypatch.setattr(forward, "read_layers", lambda *_: {1: states})
    with caplog.at_level(logging.WARNING):
        found = EmbedLayers(str(llama), layers=[1], position="last")(columns(CHAT[:2]))
    assert joined(found["emb_layer_1"]).tolist() == [[65504.0, -65504.0, *[1.0] * 30], [1.0] * 32]
    assert "2 values beyond the range of float16 were clamped" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_no_vector(llama, monkeypatch, bad):
    states = {1: np.ones((3, 32), np.float32), 2: np.ones((3, 32), np.float32)}
    states[2][1, 3] = bad
    monkeypatch.setattr(forward, "read_layers", lambda *_: states)
    found = EmbedLayers(str(llama), layers=[1, 2], position="last")(columns(CHAT[:3]))
    assert list(found["unscorable"]) == ["", "non_finite", ""]
    assert [len(spans) for spans in found["spans"]] == [1, 0, 1]
    for name in ("emb_layer_1", "emb_layer_2"):
        assert [len(cell) for cell in found[name]] == [1, 0, 1] and (joined(found[name]) == 1).all()


def test_a_row_with_one_span_that_is_not_finite_has_none(llama, monkeypatch):
    states = {1: np.ones((2, 32), np.float32)}
    states[1][1, 0] = np.nan
    monkeypatch.setattr(forward, "read_layers", lambda *_: states)
    found = EmbedLayers(str(llama), layers=[1], position="last")({"messages": [TALK]})
    assert list(found["unscorable"]) == ["non_finite"] and found["spans"] == [[]] and len(found["emb_layer_1"][0]) == 0


def test_a_model_whose_states_overflow_yields_no_vectors(tmp_path):
    folder = save_small_model(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = EmbedLayers(str(folder), layers=[1, 2])(columns(CHAT))
    assert set(found["unscorable"]) == {"non_finite"} and len(joined(found["emb_layer_1"])) == 0
    assert set(EmbedLayers(str(folder), layers=[1])(columns(CHAT))["unscorable"]) == {""}


def test_no_rows_give_empty_columns_of_the_right_width(llama, monkeypatch):
    monkeypatch.setattr(load, "trunk", lambda *_, **__: pytest.fail("a model was loaded for no rows"))
    step = EmbedLayers(str(llama), layers=[1])
    assert all(len(values) == 0 for values in step({"prompt": [], "completion": []}).values())
    found = step(pa.table({name: pa.array([], pa.string()) for name in ("prompt", "completion")}))
    assert found["emb_layer_1"].type == pa.list_(pa.list_(pa.float16(), 32)) and len(found) == 0


def test_columns_of_no_known_shape_are_mapped(llama):
    rows = [{"ask": row["prompt"], "say": row["completion"]} for row in CHAT]
    mapped = EmbedLayers(str(llama), layers=[1], columns={"prompt": "ask", "response": "say"})
    expected = EmbedLayers(str(llama), layers=[1])(columns(CHAT))["emb_layer_1"]
    assert np.array_equal(joined(mapped(columns(rows))["emb_layer_1"]), joined(expected))


def test_a_template_of_ones_own(llama):
    step = EmbedLayers(str(llama), layers=[2], chat_template=PLAIN, position="last")
    expected = [states[-1] for states, _ in states_by_hand(llama, CHAT, 2, PLAIN)]
    np.testing.assert_allclose(step.vectors(CHAT)[0].vectors[2], expected, rtol=1e-4, atol=1e-5)
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
    given = {"position": "mean,last_prompt", "ignore": ["name", "text"], "window": 12, "too_long": "cut"}
    step = EmbedLayers(str(llama), [2], columns={"prompt": "a", "response": "b"}, **given)
    record = json.loads(json.dumps(step.record()))
    assert record.pop("step") == "EmbedLayers" and record.pop("algorithm") == 2
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
        ({"layers": [1], "position": "first"}, OptionError, "position=first.*\n.*first_<n>"),
        ({"layers": [1], "position": "first_0"}, OptionError, "position=first_0"),
        ({"layers": [1], "position": "last,last"}, OptionError, "names a position twice"),
        ({"layers": [1], "spans": "some"}, OptionError, "`spans=some` is not known"),
        ({"layers": [1], "too_long": "shorten"}, OptionError, "`too_long=shorten` is not known"),
        ({"layers": [1], "window": 1}, OptionError, "`window=1`"),
        ({"layers": [1], "window": -5}, OptionError, "`window=-5`"),
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
    found = EmbedLayers(str(folder), layers=[1], chat_template="plain")(columns(CHAT))["emb_layer_1"]
    assert min(map(len, found)) > 0 and np.isfinite(joined(found)).all()


# Data sets


def test_the_column_is_fixed_size_float16_without_being_told(llama):
    step = EmbedLayers(str(llama), layers=[1])
    rows = Dataset.from_list(CHAT)
    for found in (rows.map(step, batched=True), rows.map(step), rows.with_format("arrow").map(step, batched=True)):
        vector = found.features["emb_layer_1"].feature
        assert (vector.feature.dtype, vector.length) == ("float16", 32)
        spans = found.features["spans"].feature
        assert {name: value.dtype for name, value in spans.items()} == {
            "turn": "int32", "rejected": "bool", "start": "int32", "stop": "int32"
        }  # fmt: skip
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
    expected = EmbedLayers(str(llama), layers=[2]).vectors(CHAT)[0].vectors[2]
    step = EmbedLayers(str(llama), layers=[2], attn=attn)
    np.testing.assert_allclose(step.vectors(CHAT)[0].vectors[2], expected, rtol=1e-4, atol=1e-5)
    held = next(trunk for (_, _, _, named, _), trunk in load._trunks.items() if named == attn)
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
    rows.append({"prompt": "", "completion": "x"})
    expected, _ = EmbedLayers(str(llama), layers=[2]).vectors(rows)
    happened = []
    reading, tokenising = forward.read_layers, EmbedLayers.reads

    def read(*options):
        deadline = time.monotonic() + 10
        while happened.count("tokenised") < min(3, happened.count("read") + 2) and time.monotonic() < deadline:
            time.sleep(0.01)  # for what runs beside it
        happened.append("read")
        return reading(*options)

    def tokenise(step, found, options=None):
        done = tokenising(step, found, options)
        happened.append("tokenised")
        return done

    monkeypatch.setattr("hf_safefilter.model.row_parts.TOKENISED_AT_ONCE", 7)
    monkeypatch.setattr(forward, "read_layers", read)
    monkeypatch.setattr(EmbedLayers, "reads", tokenise)
    found, _ = EmbedLayers(str(llama), layers=[2]).vectors(rows)
    np.testing.assert_allclose(found.vectors[2], expected.vectors[2], rtol=1e-4, atol=1e-5)
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert found.reasons.tolist() == expected.reasons.tolist() and found.reasons[-1]
    assert happened == ["tokenised", "tokenised", "read", "tokenised", "read", "read"]


def test_type_checkers_see_the_options_that_the_step_has():
    """The constructor for type checkers is written by hand, since it accepts more than the fields hold."""
    tree = ast.parse(inspect.getsource(embed_module))
    written = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = [argument.arg for argument in (*written.args.args, *written.args.kwonlyargs)]
    assert set(names) == {"self", *inspect.signature(EmbedLayers).parameters}
    assert names[:3] == ["self", *list(inspect.signature(EmbedLayers).parameters)[:2]]
