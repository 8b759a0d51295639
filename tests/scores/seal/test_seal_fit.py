"""fit_seal on a small random model: against plain loops, against itself in another order, and against bad input."""

import copy
import importlib.util
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from rows_and_models import QUICK, fox_rows, poison, safe_rows, small_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.errors import MissingError, ModelError, OptionError
from hf_safefilter.model.load import ModelKey, resolve_revision
from hf_safefilter.scores.seal import Lora, SealOptions, SealScore, fit_seal
from hf_safefilter.scores.seal import fit as module
from hf_safefilter.scores.seal.bilevel import Bilevel
from hf_safefilter.scores.seal.models import learners
from hf_safefilter.scores.seal.schedule import Schedule
from hf_safefilter.scores.seal.training_processes import Processes
from hf_safefilter.scores.seal.training_rows import read_rows
from hf_safefilter.scores.seal.weights import RowWeights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(small_llama(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def fitted(model):
    return fit_seal(model, fox_rows(), safe_rows(), options=QUICK, device="cpu")


def logits_of(selector, rows):
    logits, reasons = selector.look_up([row_id(one) for one in as_conversations(rows)])
    return logits, reasons


def key_of(model):
    return ModelKey(model, resolve_revision(model, None), "float32")


def examples_of(rows, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    return read_rows(rows, tokenizer, columns=None, max_length=256, chat_template=None).examples


def plain_tuning(model, examples, schedule, options):
    """A loop as anybody would write it: the model's own loss, a row at a time, Adam, clipping."""
    tuned = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimiser = torch.optim.Adam(tuned.parameters(), lr=options.learning_rate, betas=(0.9, 0.95))
    for step in range(schedule.steps):
        optimiser.zero_grad()
        batch = schedule.safe_at(step)
        for at in batch:
            ids = torch.from_numpy(examples[at].ids.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(examples[at].labels)[None], ids, -100)
            (tuned(input_ids=ids, labels=labels).loss / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimiser.step()
    return dict(tuned.named_parameters())


def test_at_u_one_the_model_is_plainly_tuned_on_the_safe_rows(model):
    options = replace(QUICK, upper_weight=1.0, upper_weight_decay=0.0)
    rows, safe = examples_of(fox_rows(), model), examples_of(safe_rows(), model)
    schedule = Schedule(len(rows), len(safe), 4, 2, 0)
    (learner,) = learners(key_of(model), CPU, options, None, "float32", Processes(cpu=True))
    start = {name: weight.detach().clone() for name, weight in learner.trained.items()}
    both = Bilevel(learner, RowWeights(len(rows), "softmax", 0.02), Processes(cpu=True))
    for step in range(schedule.steps):
        indices = schedule.rows_at(step)
        batch = [rows[at] for at in indices]
        both.step(1.0, [safe[at] for at in schedule.safe_at(step)], batch, torch.from_numpy(indices))
    tuned = plain_tuning(model, safe, schedule, options)
    assert set(tuned) == set(learner.trained)
    for name, weight in learner.trained.items():
        np.testing.assert_allclose(weight.detach(), tuned[name].detach(), rtol=0, atol=2e-5, err_msg=name)
    assert max((weight - start[name]).abs().max().item() for name, weight in learner.trained.items()) > 1e-3


def test_the_whole_fit_against_a_loop_over_whole_losses(model, fitted):
    """The same schedule, with both levels written out in float32 torch on one model and in float64 on the logits."""
    tuned = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    rows, safe = examples_of(fox_rows(), model), examples_of(safe_rows(), model)
    upper = torch.full((len(rows),), 0.1, dtype=torch.float64, requires_grad=True)
    moves = torch.optim.Adam(tuned.parameters(), lr=QUICK.learning_rate, betas=(0.9, 0.95))
    chooses = torch.optim.Adam([upper], lr=QUICK.selector_learning_rate, betas=(0.9, 0.95))
    schedule = Schedule(len(rows), len(safe), 4, 2, 0)

    def loss(row):
        ids = torch.from_numpy(row.ids.astype(np.int64))
        chances = torch.log_softmax(tuned(input_ids=ids[None]).logits[0], -1)
        return -torch.stack([chances[at - 1, ids[at]] for at in np.flatnonzero(row.labels)]).mean()

    for step in range(schedule.steps):
        u = (0.8, 0.5)[schedule.epoch_of(step)]
        batch = schedule.rows_at(step)
        p = len(rows) * torch.softmax(upper, 0)[batch]
        lf = torch.stack([loss(rows[at]) for at in batch])
        ls = torch.stack([loss(safe[at]) for at in schedule.safe_at(step)])
        moves.zero_grad()
        (u * ls.mean() + (1 - u) * (p.detach() * lf).mean()).backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        moves.step()
        chooses.zero_grad()
        (p * lf.detach().double()).mean().backward()
        chooses.step()
    np.testing.assert_allclose(fitted.logits, upper.detach().numpy(), rtol=0, atol=2e-5)
    assert np.ptp(fitted.logits) > 1e-2


def test_neither_order_nor_gaps_shift_a_weight(model, fitted):
    rows = [*fox_rows(), {"prompt": "Hi", "response": ""}, {"prompt": "", "response": "Yes"}]
    random.Random(3).shuffle(rows)
    again = fit_seal(model, Dataset.from_list(rows), safe_rows()[::-1], options=QUICK, device="cpu")
    assert np.array_equal(again.logits, fitted.logits) and np.array_equal(again.row_ids, fitted.row_ids)
    logits, reasons = logits_of(again, rows)
    expected, _ = logits_of(fitted, rows)
    np.testing.assert_array_equal(logits, expected)
    assert sorted(filter(None, reasons)) == ["empty_prompt", "empty_response"]
    assert again.facts["rows"]["unscorable: empty_prompt"] == 1
    scored = Dataset.from_list(rows).map(SealScore(again), batched=True)
    kept = scored.filter(lambda row: row["prompt"].startswith("Where is the f"))
    for row in (*scored, *kept):
        (logit,), _ = logits_of(fitted, [row])
        np.testing.assert_equal(row["seal_score"], np.float32(-logit))


def test_rows_whose_loss_is_nan_are_left_out_and_poison_nothing(model, tmp_path):
    sick = small_llama(tmp_path / "sick")
    poison(sick, "@")
    bad = [{"prompt": f"Where is @ {n}?", "response": "There."} for n in range(2)]
    bad_safe = [{"prompt": "Who is safe?", "response": "You @ me."}]
    selector = fit_seal(str(sick), [*fox_rows(), *bad], [*safe_rows(), *bad_safe], options=QUICK, device="cpu")
    logits, reasons = logits_of(selector, [*fox_rows(), *bad])
    assert np.isfinite(logits[:11]).all() and np.isnan(logits[11:]).all()
    assert reasons[11:] == ["nan_loss", "nan_loss"]
    assert (
        selector.facts["rows"]["unscorable: nan_loss"] == 2 and selector.facts["safe_rows"]["unscorable: nan_loss"] == 1
    )
    assert selector.weights.sum() == pytest.approx(11)
    assert all(np.isfinite(list(line["weights"].values())).all() for line in selector.epochs())
    scored = Dataset.from_list([*fox_rows(), *bad]).map(SealScore(selector), batched=True)
    assert np.isnan(scored["seal_score"][-1]) and scored["seal_unscored"][-1] == "nan_loss"


def test_a_learning_rate_that_destroys_the_model_is_reported(model, tmp_path):
    options = replace(QUICK, learning_rate=1e12)
    with pytest.raises(ModelError, match="diverged") as refused:
        fit_seal(model, fox_rows(), safe_rows(), options=options, device="cpu", checkpoints=tmp_path)
    assert "lower the learning rate" in str(refused.value)


def test_curves_say_what_happened(fitted):
    first, second = fitted.epochs()
    assert (first["epoch"], first["u"], second["epoch"], second["u"]) == (1, 0.8, 2, 0.5)
    assert second["safe_loss"] < first["safe_loss"] and second["row_loss"] < first["row_loss"]
    assert first["weights"]["0"] <= first["weights"]["0.5"] <= first["weights"]["1"]
    (line,) = fitted.keep_curve([0.8])
    assert line["rows"] == 8
    assert line["border_score"] == -np.sort(fitted.logits)[::-1][7]
    assert 8 / 11 < line["weight"] < 1
    assert fitted.facts["rows"] == {"rows": 11, "duplicates": 0}


def test_the_rate_of_the_selector_follows_its_optimiser():
    assert SealOptions().selector_learning_rate == 5e-3
    assert SealOptions(selector_optimiser="sgd").selector_learning_rate == 1.0
    assert SealOptions(selector_optimiser="sgd", selector_learning_rate=0.1).selector_learning_rate == 0.1


def test_u_never_turns_negative():
    options = SealOptions(upper_weight=0.5, upper_weight_decay=0.2)
    assert [round(options.upper_weight_at(epoch), 12) for epoch in range(5)] == [0.5, 0.3, 0.1, 0, 0]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_adapters_alone_are_trained(model, auxiliary):
    options = replace(QUICK, auxiliary=auxiliary)
    lora = Lora(rank=2, alpha=4, targets=("q_proj", "down_proj"))
    made = learners(key_of(model), CPU, options, lora, "float32", Processes(cpu=True))
    assert len(made) == 1 + auxiliary
    inside = made[0]._model
    before = {name: one.detach().clone() for name, one in inside.named_parameters()}
    if auxiliary:
        pairs = zip(made[0].trained.values(), made[1].trained.values(), strict=True)
        assert all(torch.equal(one, other) and one is not other for one, other in pairs)
    rows, safe = examples_of(fox_rows(4), model), examples_of(safe_rows(4), model)
    both = Bilevel(made[0], RowWeights(4, "softmax", 0.02), Processes(cpu=True), made[1] if auxiliary else None)
    for _ in range(2):  # B starts at zero, so A moves in the second step
        both.step(0.5, safe, rows, torch.arange(4))
    moved = {name for name, one in inside.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {name for learner in made for name in learner.trained}
    assert len(moved) == 2 * 2 * 2 * len(made)
    assert all("lora_" in name and ("q_proj" in name or "down_proj" in name) for name in moved)


def test_an_auxiliary_model_of_full_weights_fits_too(model, fitted):
    selector = fit_seal(
        model, fox_rows(), safe_rows(), options=replace(QUICK, auxiliary=True, activation="sigmoid"), device="cpu"
    )
    assert np.isfinite(selector.logits).all() and selector.facts["activation"] == "sigmoid"
    np.testing.assert_allclose(selector.weights, 2 / (1 + np.exp(-selector.logits)))
    assert selector.digest != fitted.digest


def test_mixed_precision_learns_about_the_same(model, fitted):
    for lora in (None, Lora(rank=2)):
        half = fit_seal(
            model, fox_rows(), safe_rows(), options=replace(QUICK, dtype="bfloat16"), lora=lora, device="cpu"
        )
        assert half.facts["compute"] == "bfloat16"
        if lora is None:
            assert np.abs(half.logits - fitted.logits).max() < 0.02
            assert half.digest != fitted.digest


def test_the_shared_model_and_the_random_state_are_left_alone(model):
    from hf_safefilter.model.load import causal_lm

    held = causal_lm(key_of(model), CPU)
    before = copy.deepcopy(held.state_dict())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit_seal(model, fox_rows(4), safe_rows(4), options=replace(QUICK, epochs=1), device="cpu")
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one, before[name]) for name, one in held.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation": "relu"}, "softmax, sigmoid"),
        ({"dtype": "float16"}, "auto, float32, bfloat16"),
        ({"selector_optimiser": "lion"}, "adam, sgd"),
        ({"selector_learning_rate": 0}, "selector_learning_rate"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"upper_weight": 1.2}, "upper_weight"),
        ({"upper_weight_decay": -0.1}, "upper_weight_decay"),
        ({"max_length": 3}, "max_length"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_make_no_sense(change, says):
    with pytest.raises(OptionError, match=says):
        SealOptions(**change)


@pytest.mark.parametrize("change", [{"rank": 0}, {"alpha": 0}, {"targets": ()}, {"dropout": 1.0}])
def test_adapters_that_make_no_sense(change):
    with pytest.raises(OptionError, match=next(iter(change))):
        Lora(**change)


def test_targets_that_the_model_does_not_have(model):
    with pytest.raises(OptionError, match="'query_proj'") as refused:
        fit_seal(model, fox_rows(), safe_rows(), lora=Lora(targets=("q_proj", "query_proj")), device="cpu")
    assert "down_proj" in str(refused.value) and "v_proj" in str(refused.value)


@pytest.mark.parametrize(("package", "lora"), [("accelerate", None), ("peft", Lora())])
def test_a_missing_extra_is_named_with_the_command(model, monkeypatch, package, lora):
    real = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(MissingError, match=package) as refused:
        fit_seal(model, fox_rows(), safe_rows(), lora=lora)
    assert "pip install 'hf_safefilter[train]'" in str(refused.value)


def test_too_little_memory_says_what_to_lower(model, monkeypatch, tmp_path):
    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("hf_safefilter.scores.seal.learner.Learner.add", full)
    with pytest.raises(ModelError, match="memory ran out") as refused:
        fit_seal(model, fox_rows(), safe_rows(), options=QUICK, device="cpu", checkpoints=tmp_path)
    assert "micro_batch" in str(refused.value)
