"""Tuning by TRL: what it learns, in which order, how often; and what stops it."""

import copy

import numpy as np
import pytest
import torch

from hf_safefilter.effect import tuning as tuning_module
from hf_safefilter.effect.arms import schedule
from hf_safefilter.effect.tuning import Tuning, require_memory, require_trainer, tune
from hf_safefilter.errors import MissingError, ModelError, OptionError

OPTIONS = Tuning(steps=3, batch=4, learning_rate=1e-3, method="full")


@pytest.fixture
def order(material):
    return schedule(np.arange(len(material.tokens)), OPTIONS.steps * OPTIONS.batch, 0)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("answers", [1, 2])
def test_full_tuning_is_adamw_on_all_answers_in_the_order_given(model, tokenizer, material, dialogues, said, answers):
    """The second route: a plain loop, a row at a time, with gradients summed over the batch."""
    tokens = material.tokens if answers == 1 else dialogues
    order = schedule(np.arange(len(tokens)), OPTIONS.steps * OPTIONS.batch, 0)
    plain = copy.deepcopy(model).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8)
    before, expected = weights(model), []
    for step in range(3):
        rows = [tokens[at] for at in order[4 * step : 4 * step + 4]]
        count = sum(said(row.ids).sum() for row in rows)
        total = 0.0
        for row in rows:
            ids, learned = torch.tensor(row.ids.astype("int64")), torch.from_numpy(said(row.ids))
            chances = plain(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
            loss = -chances[learned[1:]].sum() / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * (3 - step) / 3
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total)
    tuned, losses = tune(model, tokenizer, tokens, order, OPTIONS, seed=0)
    assert losses == pytest.approx(expected, rel=1e-3)
    for (name, ours), theirs in zip(tuned.named_parameters(), plain.parameters(), strict=True):
        # Adam blows rounding up where a gradient is almost zero, so the distance moved is compared as a whole.
        assert (ours - theirs).norm() < 0.02 * (theirs - before[name]).norm(), name


def test_the_same_seed_gives_the_same_weights_and_micro_batches_change_nothing(key, tokenizer, material, order):
    from hf_safefilter.model import load

    results = []
    for options in (OPTIONS, OPTIONS, Tuning(steps=3, batch=4, learning_rate=1e-3, method="full", micro_batch=2)):
        model = load.fresh_causal_lm(key, torch.device("cpu"))
        tuned, losses = tune(model, tokenizer, material.tokens, order, options, seed=5)
        results.append((weights(tuned), losses))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())
    assert len(results[2][1]) == 3
    assert results[2][1] == pytest.approx(results[0][1], rel=1e-4)


def test_lora_leaves_the_weights_below_as_they_were(model, tokenizer, material, order):
    before = weights(model)
    options = Tuning(steps=3, batch=4, learning_rate=1e-2, rank=4, targets=("q_proj", "v_proj"))
    tuned, losses = tune(model, tokenizer, material.tokens, order, options, seed=0)
    assert len(losses) == 3
    adapters = {name: value for name, value in tuned.named_parameters() if "lora_" in name}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapters} == {"q_proj", "v_proj"}
    assert any(value.abs().sum() > 0 for name, value in adapters.items() if "lora_B" in name)
    base = {name.replace(".base_layer", ""): value for name, value in tuned.base_model.model.named_parameters()}
    assert all(torch.equal(value, base[name]) for name, value in before.items() if name in base)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_frozen_blocks_stay_as_they_were_and_the_others_move(model, tokenizer, material, order, method):
    before = weights(model)
    options = Tuning(steps=3, batch=4, learning_rate=1e-2, method=method, weight_decay=0.1)
    tuned, _ = tune(model, tokenizer, material.tokens, order, options, seed=0, frozen=(1, 3))
    if method == "lora":
        tuned = tuned.merge_and_unload()
    after = tuned.state_dict()
    for name, value in before.items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            block = int(name.split("layers.")[1].split(".")[0])
            assert torch.equal(value, after[name]) == (1 <= block <= 3), name


def test_nothing_outside_is_changed(model, tokenizer, material, order):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(1), np.random.random()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    side, pad, threads = tokenizer.padding_side, tokenizer.pad_token, torch.get_num_threads()
    tune(model, tokenizer, material.tokens, order, OPTIONS, seed=0)
    assert (torch.rand(1), np.random.random()) == expected  # noqa: NPY002
    assert (tokenizer.padding_side, tokenizer.pad_token, torch.get_num_threads()) == (side, pad, threads)


def test_a_loss_that_is_no_number_stops_it(model, tokenizer, material, order):
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="became nan at step 1"):
        tune(model, tokenizer, material.tokens, order, OPTIONS, seed=0)


def test_targets_that_do_not_exist_are_named(model, tokenizer, material, order):
    with pytest.raises(OptionError) as caught:
        tune(model, tokenizer, material.tokens, order, Tuning(steps=1, batch=1, targets=("qkv_cheese",)), seed=0)
    assert "qkv_cheese" in str(caught.value)
    assert "down_proj" in caught.value.found


def test_too_little_memory_is_said_before_the_system_kills(model, monkeypatch):
    monkeypatch.setattr(tuning_module, "_free_bytes", lambda _: 1000.0)
    with pytest.raises(ModelError, match="use LoRA"):
        require_memory(model, OPTIONS)
    require_memory(model, Tuning())


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")],
)
def test_running_out_of_memory_is_said(model, tokenizer, material, order, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(tuning_module, "_trainable", fail)
    with pytest.raises(ModelError, match="use `micro_batch=2` or a smaller `max_length=...` or LoRA"):
        tune(model, tokenizer, material.tokens, order, OPTIONS, seed=0)


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
    require_trainer()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trl" else name)
    with pytest.raises(MissingError, match=r"needs trl") as caught:
        require_trainer()
    assert "pip install 'hf_safefilter[train]'" in caught.value.fix


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"batch": 0}, {"method": "magic"}, {"learning_rate": 0}, {"learning_rate": 3.0},
     {"micro_batch": 3}, {"rank": 0}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(change):
    with pytest.raises(OptionError):
        Tuning(**change)


def test_defaults_by_method():
    assert Tuning().learning_rate == 2e-4
    assert Tuning(method="full").learning_rate == 2e-5
