import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_safefilter.errors import IntegrityError, ModelError, OptionError
from hf_safefilter.freeze import (
    FrozenBlocks,
    freeze_safety_blocks,
    freezing_plan,
    lora_config,
    lora_settings,
    lora_without,
)
from tests.small_models import save_small_model

IDS = torch.arange(7, 27).reshape(2, 10)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    held = {}

    def get(name):
        if name not in held:
            held[name] = save_small_model(tmp_path_factory.mktemp(name), name)
        return held[name]

    return get


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def is_norm(name):
    return "norm" in name.split(".")[-2] and "q_norm" not in name and "k_norm" not in name


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt_neox", "opt", "gemma2"])
@pytest.mark.parametrize("include_norms", [False, True])
def test_after_a_step_with_weight_decay_frozen_tensors_are_bit_equal_and_all_others_moved(folders, name, include_norms):
    model = load(folders(name))
    frozen = freeze_safety_blocks(model, 1, 2, include_norms)
    before = {key: tensor.clone() for key, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    for key, tensor in model.named_parameters():
        inside = (".1." in key or ".2." in key) and (include_norms or not is_norm(key))
        assert inside == (key in frozen.names), key
        # the padding row of an embedding, and positions beyond the text, get no gradient: decay alone moves them
        assert torch.equal(tensor, before[key]) == inside, key
    total = sum(tensor.numel() for tensor in model.parameters())
    assert frozen.frozen + frozen.trainable == total
    assert frozen.frozen == sum(before[key].numel() for key in frozen.names)


def test_a_trainer_checks_and_reports(folders, tmp_path):
    model = load(folders("llama"))
    frozen = freeze_safety_blocks(model, 0, 1)
    watch = FrozenBlocks(frozen)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        learning_rate=1e-2, weight_decay=0.1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS]
    head = model.model.layers[3].mlp.up_proj.weight.clone()
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[watch]).train()
    assert watch.trainable == frozen.trainable
    assert not torch.equal(model.model.layers[3].mlp.up_proj.weight, head)


def test_tensors_that_changed_or_thawed_are_noticed(folders):
    model = load(folders("llama"))
    watch = FrozenBlocks(freeze_safety_blocks(model, 0, 1))
    watch.on_train_begin(None, None, None, model=model)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[0, 0] += 1e-3
    with pytest.raises(IntegrityError, match="changed during training"):
        watch.on_train_end(None, None, None, model=model)
    weight.data[0, 0] -= 1e-3
    weight.requires_grad_(True)
    with pytest.raises(IntegrityError, match="would train"):
        watch.on_train_begin(None, None, None, model=model)
    with pytest.raises(IntegrityError, match="lost"):
        watch.on_train_begin(None, None, None, model=copy.deepcopy(model.model))


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox"])
def test_adapters_leave_the_blocks_out(folders, name):
    from peft import get_peft_model

    model = get_peft_model(load(folders(name)), lora_config(str(folders(name)), 1, 2, r=4))
    adapters = [key for key, tensor in model.named_parameters() if tensor.requires_grad]
    assert adapters and all("lora" in key for key in adapters)
    assert not any(".1." in key or ".2." in key for key in adapters)
    assert {".0.", ".3."} <= {part for key in adapters for part in (".0.", ".3.") if part in key}
    own = load(folders(name))
    assert lora_settings(own, 1, 2) == lora_settings(str(folders(name)), 1, 2)


def test_a_config_of_ones_own_keeps_its_modules(folders):
    from peft import LoraConfig

    config = lora_without(load(folders("llama")), LoraConfig(target_modules=["q_proj", "v_proj"], r=3), 0, 1)
    assert (set(config.target_modules), config.r, config.layers_to_transform) == ({"q_proj", "v_proj"}, 3, [2, 3])
    config = lora_without(load(folders("llama")), LoraConfig(target_modules="all-linear"), 0, 1)
    assert set(config.target_modules) == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    config = lora_without(load(folders("llama")), LoraConfig(layers_to_transform=[1, 2]), 0, 1)
    assert config.layers_to_transform == [2]
    with pytest.raises(OptionError, match="which are left out"):
        lora_without(load(folders("llama")), LoraConfig(layers_to_transform=1), 0, 1)
    with pytest.raises(OptionError, match="is a pattern"):  # not all projections in its place
        lora_without(load(folders("llama")), LoraConfig(target_modules=r".*\.(q|v)_proj"), 0, 1)


def test_freezing_a_model_with_adapters_freezes_theirs_too(folders):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(folders("llama")), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    frozen = freeze_safety_blocks(model, 0, 2)
    trains = [key for key, tensor in model.named_parameters() if tensor.requires_grad]
    assert trains and all(".3." in key for key in trains)
    assert any("lora" in key for key in frozen.names)


def test_a_plan_needs_no_weights(folders):
    plan = freezing_plan(str(folders("llama")), 1, 2)
    real = freeze_safety_blocks(load(folders("llama")), 1, 2)
    assert (plan.names, plan.frozen, plan.trainable) == (real.names, real.frozen, real.trainable)
    assert plan.digest == ""
    with pytest.raises(OptionError, match="a plan for a model without weights"):
        FrozenBlocks(plan)
    toy = freezing_plan("toy", 1, 2).to_json()
    assert toy["frozen_parameters"] == 2 * (128 * 128 * 2 + 2 * 64 * 128 + 3 * 128 * 256)


@pytest.mark.parametrize(("first", "last"), [(2, 1), (-1, 1), (0, 4), (1.0, 2), (True, 2)])
def test_a_range_outside_the_model_is_refused(folders, first, last):
    with pytest.raises(OptionError, match="4 blocks"):
        freeze_safety_blocks(load(folders("llama")), first, last)
    with pytest.raises(OptionError):
        lora_settings(str(folders("llama")), first, last)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(ModelError, match="Linear is not a transformers model"):
        freeze_safety_blocks(torch.nn.Linear(2, 2), 0, 1)


def test_leaving_all_blocks_out_is_refused(folders):
    with pytest.raises(OptionError, match="nothing would train"):
        lora_settings(str(folders("llama")), 0, 3)
