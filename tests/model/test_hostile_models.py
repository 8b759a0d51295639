"""Models from strangers: nothing outside their folder is read, none of their code runs, no size is believed."""

import json
import os
import shutil
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import save_small_model

from hf_safefilter.errors import ModelError
from hf_safefilter.model import config_rules, load
from hf_safefilter.model.config_rules import no_fetched_code
from hf_safefilter.model.load import ModelKey, resolve_revision, tokenizer, trunk
from hf_safefilter.plan.work import pretrained, read_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def own(llama, tmp_path):
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture(autouse=True)
def empty_tables():
    yield
    load._trunks.clear()


def read(folder):
    key = ModelKey(str(folder), resolve_revision(str(folder), None), "float32")
    tokenizer(key)
    return trunk(key, 2, CPU)


def configure(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def index(folder, target, keep=False):
    """Name `target` as the file of every weight."""
    weights = load_file(folder / "model.safetensors")
    if not keep:
        (folder / "model.safetensors").rename(folder / "x.safetensors")
    body = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, target)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))


# Weights


@pytest.mark.parametrize("keep", [False, True], ids=["alone", "beside a whole file"])
@pytest.mark.parametrize(
    "target",
    [
        "pytorch_model.bin",
        "../outside/w.safetensors",
        "sub/w.safetensors",
        "/abs.safetensors",
        ".w.safetensors",
        7,
        None,
    ],
)
def test_an_index_names_safetensors_of_its_own_folder_alone(own, target, keep):
    weights = load_file(own / "model.safetensors")
    torch.save(weights, own / "pytorch_model.bin")
    for place in (own.parent / "outside", own / "sub"):
        place.mkdir()
        save_file(weights, place / "w.safetensors", {"format": "pt"})
    index(own, target, keep)
    with pytest.raises(ModelError, match=r"index.json names .*, which is not"):
        read(own)


def test_an_index_of_files_that_are_there_is_read(own):
    index(own, "x.safetensors")
    assert read(own).depth == 2


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "[" * 100_000, "{", '{"weight_map": {"a": ' * 70])
def test_a_damaged_index_is_said(own, text):
    (own / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="is not"):
        read(own)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_no_file_of_a_model_is_a_link_to_elsewhere(own, name):
    (own / name).rename(own.parent / "elsewhere")
    (own / name).symlink_to(own.parent / "elsewhere")
    with pytest.raises(ModelError, match=f"{name} of the model model is outside the folder"):
        read(own)


def test_an_index_on_the_hub_is_held_to_the_same_rule(hub, own):
    from huggingface_hub import HfApi

    torch.save(load_file(own / "model.safetensors"), own / "pytorch_model.bin")
    index(own, "pytorch_model.bin")
    name = f"{hub.user}/model"
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=own)
    with pytest.raises(ModelError, match="names 'pytorch_model.bin', which is not"):
        read(name)


def test_an_adapter_beside_a_model_does_not_bring_another_base(hub, own):
    """transformers would load the base that its configuration names, under the commit of this repository."""
    from huggingface_hub import HfApi

    (own / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/elsewhere"}))
    name = f"{hub.user}/model"
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=own)
    with pytest.raises(ModelError, match=f"{name} contains an adapter"):
        read(name)
    (own / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="contains an adapter"):
        read(own / "model.gguf")


def test_a_second_load_waits_for_the_first_and_leaves_the_package_kernels_as_it_was():
    from transformers.integrations import hub_kernels

    before, taken = hub_kernels._kernels_enabled, []
    with no_fetched_code():
        with no_fetched_code():  # of the same thread: an adapter within a model
            assert hub_kernels._kernels_enabled is False
        thread = threading.Thread(target=lambda: taken.append(config_rules._patched.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False] and hub_kernels._kernels_enabled is before


# Code


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_does_not_choose_the_code_of_attention(own, key, monkeypatch):
    expected = read(own).model.config._attn_implementation
    load._trunks.clear()
    asked = []
    monkeypatch.setattr(
        "transformers.integrations.hub_kernels.load_and_register_attn_kernel",
        lambda *args, **options: asked.append(args),
    )
    configure(own, **{key: "kernels-community/anything"})
    assert read(own).model.config._attn_implementation == expected
    load.causal_lm.cache_clear()
    whole = load.causal_lm(ModelKey(str(own), resolve_revision(str(own), None), "float32"), CPU)
    assert (whole.config._attn_implementation, asked) == (expected, [])


def test_a_part_of_a_configuration_does_not_either(tmp_path):
    own = save_small_model(tmp_path / "gemma", "gemma3")
    inner = json.loads((own / "config.json").read_text())["text_config"]
    configure(own, text_config=inner | {"attn_implementation": "kernels-community/anything"})
    assert "/" not in read(own).model.config._attn_implementation
    assert read_config(str(own)).get_text_config()._attn_implementation is None


def test_code_in_a_folder_does_not_run(own):
    (own / "evil.py").write_text("raise SystemExit('it ran')\nclass C: pass\n")
    configure(own, auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.C", "AutoModelForCausalLM": "evil.C"})
    assert read(own).depth == 2
    configure(own, model_type="evil")
    with pytest.raises(ModelError, match="cannot be loaded"):
        read(own)


def test_weights_named_by_a_configuration_are_not_read(own):
    configure(own, transformers_weights="pytorch_model.bin")
    torch.save({}, own / "pytorch_model.bin")
    assert read(own).depth == 2


@pytest.mark.parametrize("method", ["nvfp4", "eetq"])
def test_a_format_that_needs_code_from_the_hub_is_refused_where_it_could_come(own, monkeypatch, method):
    module = "hf_safefilter.model.quantised.find_spec"
    monkeypatch.setattr(module, lambda name: ModuleSpec(name, None) if name == "kernels" else None)
    configure(own, quantization_config={"quant_method": method})
    with pytest.raises(ModelError, match=f"format {method}, which is computed by code from the Hub"):
        read_config(str(own))
    configure(own, quantization_config={"quant_method": "fp8"})
    assert read_config(str(own)).quantization_config["dequantize"] is True


def test_nothing_is_fetched_while_a_model_is_built(monkeypatch):
    from transformers.integrations import hub_kernels

    monkeypatch.setattr(hub_kernels, "get_kernel_hub", lambda *args, **options: "code", raising=False)
    with no_fetched_code(), pytest.raises(FileNotFoundError, match="not run"):
        hub_kernels.get_kernel_hub("kernels-community/anything")
    assert hub_kernels.get_kernel_hub("x") == "code"


def test_an_adapter_does_not_import_what_it_names(own, tmp_path):
    pytest.importorskip("peft")
    from hf_safefilter.model.adapter import _config

    good = {"peft_type": "LORA", "r": 8, "megatron_config": None, "megatron_core": "megatron.core"}
    for change in ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, {"layer_replication": [[0, 10**9]]},
                   {"r": 10**9}, {"r": "8"}):  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(json.dumps(good | change))
        with pytest.raises(ModelError):
            _config(tmp_path, "it")
    (tmp_path / "adapter_config.json").write_text(json.dumps(good))
    assert _config(tmp_path, "it")["r"] == 8
    assert "evil" not in sys.modules


# Sizes and values


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9}, {"num_hidden_layers": -3}, {"num_hidden_layers": 0}, {"num_hidden_layers": "4"},
        {"num_hidden_layers": None}, {"num_hidden_layers": [4]}, {"hidden_size": 10**9}, {"hidden_size": {"a": 1}},
        {"vocab_size": 10**10}, {"num_attention_heads": 0}, {"num_key_value_heads": 0}, {"num_key_value_heads": 10**8},
        {"head_dim": -1}, {"model_type": ["llama"]}, {"model_type": None}, {"rope_parameters": {"rope_type": "x"}},
        {"rope_parameters": "x"}, {"quantization_config": {"quant_method": "gptq"}}, {"quantization_config": []},
        {"hidden_act": "no such"}, {"torch_dtype": "no such"}, {"max_position_embeddings": 10**12},
        {"architectures": 3}, {"layer_types": ["no such"] * 4}, {"pad_token_id": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_strange_value_ends_in_a_sentence_or_does_no_harm(own, values):
    configure(own, **values)
    try:
        assert read(own).hidden_size == 32
    except ModelError as error:
        assert error.fix


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "null", "{", "", '"x"', '{"a": ' * 900 + "1" + "}" * 900])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_something_else(own, name, text):
    (own / name).write_text(text)
    with pytest.raises(ModelError):
        read(own)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_text(own, name):
    (own / name).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError):
        read(own)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_place_of_a_file_does_not_wait(own):
    (own / "tokenizer.json").unlink()
    os.mkfifo(own / "tokenizer.json")
    with pytest.raises(ModelError):
        read(own)


@pytest.mark.parametrize("longest", [[], "x", 0.5, -3, 0, None, True, {"a": 1}])
def test_a_longest_row_that_is_none_is_no_limit(own, longest):
    file = own / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": longest}))
    assert load.max_tokens(ModelKey(str(own), resolve_revision(str(own), None), "float32")) == 256


# Tokenizers


def normalise(folder, part):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": part}))


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "Sequence", "normalizers": [replace("e", "e" * 10)] * 9},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replace("e", "ee")] * 10}]},
        replace("", "a" * 1000),
        {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 1000},
        {"type": "Prepend", "prepend": "a" * 1000},
    ],
)
def test_a_tokenizer_that_makes_a_letter_into_thousands_is_refused_unread(own, part):
    normalise(own, part)
    with pytest.raises(ModelError, match="normalizer of .* could make a text [0-9,]+ times as long"):
        read(own)
    with pytest.raises(ModelError, match="times as long"):
        pretrained("AutoTokenizer", str(own), None)


@pytest.mark.parametrize(
    "part",
    [
        None,
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    ],
)
def test_the_normalisers_that_models_have_are_kept(own, part):
    normalise(own, part)
    assert read(own).depth == 2


def test_a_token_that_has_no_embedding_ends_in_a_sentence(own):
    from hf_safefilter.embed import EmbedLayers

    file = own / "tokenizer.json"
    body = json.loads(file.read_text())
    vocabulary = body["model"]["vocab"]
    vocabulary["a"] = 10**6
    file.write_text(json.dumps(body))
    with pytest.raises(ModelError, match="token"):
        EmbedLayers(str(own), layers=[2])({"prompt": ["a b a"], "response": ["a a a"]})
