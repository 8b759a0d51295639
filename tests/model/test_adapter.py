"""An adapter is read as the model that it makes: merged as PEFT merges it, pinned by both digests."""

import json
import logging

import numpy as np
import pytest
import torch
from small_models import save_small_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_safefilter import EmbedLayers, Recipe
from hf_safefilter.errors import IntegrityError, ModelError
from hf_safefilter.model.adapter import merged
from hf_safefilter.publish.provenance import portable

peft = pytest.importorskip("peft")
ROWS = [{"prompt": "Name three flowers.", "response": "Fox, river and bread."}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("base"))


def save_adapter(base, folder, seed=1, **options):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("layer", [1, 4])
def test_the_merged_model_is_read(base, adapter, layer):
    step = EmbedLayers(str(base), [layer], adapter=str(adapter), position="last")
    vector = step.vectors(ROWS)[0].vectors[layer][0]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().eval()
    turns = [{"role": "user", "content": ROWS[0]["prompt"]}, {"role": "assistant", "content": ROWS[0]["response"]}]
    ids = AutoTokenizer.from_pretrained(base).apply_chat_template(turns, return_tensors="pt", return_dict=True)
    states = []
    hook = model.model.layers[layer - 1].register_forward_hook(
        lambda *call: states.append(call[-1][0] if isinstance(call[-1], tuple) else call[-1])
    )
    with torch.no_grad():
        model(**ids)
    hook.remove()
    assert np.allclose(vector, states[0][0, -1].numpy(), atol=1e-4)
    alone = EmbedLayers(str(base), [layer], position="last").vectors(ROWS)[0].vectors[layer][0]
    assert np.abs(vector - alone).max() > 1e-2


def test_both_are_pinned(base, adapter, tmp_path):
    step = EmbedLayers(str(base), [1], adapter=str(adapter))
    assert step.model == f"{base} + {adapter}" and step.revision.count("sha256:") == 2
    assert step.revision.startswith(EmbedLayers(str(base), [1]).revision + " + ")
    assert EmbedLayers(step.model, [1], revision=step.revision) == step
    other = save_adapter(base, tmp_path / "other", seed=2)
    assert EmbedLayers(str(base), [1], adapter=str(other)).revision != step.revision
    with pytest.raises(IntegrityError, match="have changed"):
        EmbedLayers(f"{base} + {other}", [1], revision=step.revision)


def test_a_card_names_both_without_their_paths(base, adapter):
    step = EmbedLayers(str(base), [1], adapter=str(adapter))
    assert portable(step.describe())["model"] == f"{base.name} + {adapter.name}"
    recipe = Recipe.read(
        {
            "data": {"license": "mit", "source": "tests"},
            "model": {"name": str(base), "adapter": str(adapter)},
            "select": {"drop_count": 1},
        }
    )
    assert recipe.model.model == step.model
    assert recipe.portable()["model"]["name"] == f"{base.name} + {adapter.name}"


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    wide = save_small_model(tmp_path / "wide", hidden_size=64)
    with pytest.raises(ModelError, match="made for another model"):
        EmbedLayers(str(base), [1], adapter=str(save_adapter(wide, tmp_path / "a"))).vectors(ROWS)
    deep = save_small_model(tmp_path / "named", "gpt_neox")
    other = save_adapter(deep, tmp_path / "b", target_modules=["query_key_value"])
    with pytest.raises(ModelError, match="made for another model"):
        EmbedLayers(str(base), [1], adapter=str(other)).vectors(ROWS)


def test_blocks_that_are_not_loaded_are_no_reason(base, tmp_path):
    upper = save_adapter(base, tmp_path / "upper", layers_to_transform=[0, 3])
    assert EmbedLayers(str(base), [1], adapter=str(upper)).vectors(ROWS)[0].vectors[1].shape[0]


@pytest.mark.parametrize(("blocks", "read"), [(2, 4), (6, 4), (6, 1)])
def test_an_adapter_of_a_model_of_another_depth_is_refused(base, tmp_path, blocks, read):
    other = save_small_model(tmp_path / "other", num_hidden_layers=blocks)
    adapter = save_adapter(other, tmp_path / "adapter")
    with pytest.raises(ModelError, match="made for another model") as error:
        EmbedLayers(str(base), [read], adapter=str(adapter)).vectors(ROWS)
    assert str(other) in error.value.found and "was trained on" in error.value.fix


def test_an_adapter_that_lacks_weights_is_refused(base, tmp_path):
    from safetensors.torch import load_file, save_file

    file = save_adapter(base, tmp_path / "part") / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if "q_proj" in name}, file)
    with pytest.raises(ModelError, match="8 of its weights are missing") as error:
        EmbedLayers(str(base), [4], adapter=str(file.parent)).vectors(ROWS)
    assert "down_proj" in error.value.found and "save the adapter again" in error.value.fix


@pytest.mark.parametrize(
    ("named", "merged_into", "warned"),
    [
        ("them/base-7b", "them/chat-7b", True),
        ("them/Base-7b", "Them/base-7b", False),
        ("/tmp/base", "them/base", False),
    ],
)
def test_an_adapter_that_names_another_base_is_told(base, tmp_path, caplog, named, merged_into, warned):
    folder = save_adapter(base, tmp_path / "named")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": named}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with caplog.at_level(logging.WARNING, "hf_safefilter"):
        merged(model, folder, "us/adapter", merged_into, 4)
    assert ("names them/base-7b as its base, and is merged into them/chat-7b" in caplog.text) == warned


def test_what_is_no_adapter_is_said(base, adapter, tmp_path):
    with pytest.raises(ModelError, match="contains no adapter"):
        EmbedLayers(str(base), [1], adapter=str(base))
    with pytest.raises(ModelError, match="contains an adapter") as error:
        EmbedLayers(str(adapter), [1])
    assert "adapter=" in error.value.fix
    zero = save_adapter(base, tmp_path / "zero")
    from safetensors.torch import load_file, save_file

    weights = load_file(zero / "adapter_model.safetensors")
    save_file({name: weight * 0 for name, weight in weights.items()}, zero / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="changes nothing"):
        EmbedLayers(str(base), [1], adapter=str(zero)).vectors(ROWS)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"peft_type": "PROMPT_TUNING"}
    (zero / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be merged"):
        EmbedLayers(str(base), [1], adapter=str(zero)).vectors(ROWS)


def test_a_pickled_adapter_is_not_read(base, adapter, tmp_path):
    folder = save_adapter(base, tmp_path / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        EmbedLayers(str(base), [1], adapter=str(folder))
