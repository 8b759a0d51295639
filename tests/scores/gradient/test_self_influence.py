"""Gradient norms against flat vectors in float64, the golden values, and what options and cache change."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from small import flat_gradient, made_up, small
from small_models import save_small_model
from stand_in import safe_rows, unsafe_rows
from trained_refuser import save_trained_refuser

from hf_safefilter import cache
from hf_safefilter.cache import SWITCH
from hf_safefilter.cache import store as stores
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.errors import MissingError, OptionError, SafefilterError
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.scores.gradient import SelfInfluenceScore, anchor
from hf_safefilter.scores.gradient import row_scores as measure
from hf_safefilter.scores.gradient.meters import Norms
from hf_safefilter.scores.gradient.parts import Parts

CPU = torch.device("cpu")
GOLDEN = [4.0073331852, 9.9184254249, 0.9162907319]  # squared norms 4, 100, 0.25; lengths 10, 200, 1

ROWS = [*unsafe_rows(3), *safe_rows(4), {"prompt": "Again", "response": "Sure, " * 9}, {"prompt": "A", "response": "B"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("models") / "llama", tie_word_embeddings=True))


@pytest.fixture
def fresh_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path))
    monkeypatch.setenv(SWITCH, "on")
    stores._open.clear()
    yield
    stores._open.clear()


@pytest.fixture
def measured(monkeypatch):
    """Numbers of the rows of which gradients are computed."""
    counts, whole = [], SelfInfluenceScore._log_norms
    monkeypatch.setattr(
        SelfInfluenceScore,
        "_log_norms",
        lambda self, rows, device: counts.append(len(rows)) or whole(self, rows, device),
    )
    return counts


def columns(rows):
    return {name: [row[name] for row in rows] for name in ("prompt", "response")}


def scores(step, rows=ROWS):
    return step(columns(rows))["self_influence_score"]


def log_norms(tuned, examples, budget=None):
    return measure.measure(tuned, examples, lambda count: Norms(count, CPU), budget)[0]


def by_definition(tuned, examples):
    """log(|g|^2 + 1) of one flat gradient after another."""
    return np.array([np.log(float(flat_gradient(tuned, example).double().square().sum()) + 1) for example in examples])


def test_golden_values(model, monkeypatch):
    meter = Norms(3, CPU)
    meter.add("p", torch.tensor([[2, 0], [6, 8], [0.3, 0.4]], dtype=torch.float64))
    np.testing.assert_allclose(meter.scores(), GOLDEN - np.log([11, 201, 2]), rtol=0, atol=1e-9)
    monkeypatch.setenv(SWITCH, "off")
    monkeypatch.setattr(SelfInfluenceScore, "_log_norms", lambda self, rows, device: (meter.scores().numpy(), [""] * 3))
    rows = [{"prompt": "Say something", "response": "x" * length} for length in (10, 200, 1)]
    step = SelfInfluenceScore(model, length_unit="characters", device="cpu")
    np.testing.assert_allclose(scores(step, rows), GOLDEN, rtol=1e-6)
    np.testing.assert_allclose(scores(replace(step, length_unit="none"), rows), np.log([5, 101, 1.25]), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llama", Parts()),
        ("qwen2", Parts()),
        ("gemma2", Parts()),
        ("qwen2", Parts("last_blocks", blocks=2)),
        ("llama", Parts("lora", rank=4)),
        ("opt", Parts()),  # row by row
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_many_rows_in_one_backward_are_exact(name, parts):
    tuned = small(name, parts, tie_word_embeddings=True)
    examples = made_up()
    assert (measure.fast_rules(tuned) is None) == (name == "opt")
    # Gemma's norms compute in float32 whatever they are given, in another order for another batch.
    np.testing.assert_allclose(
        log_norms(tuned, examples), by_definition(tuned, examples), rtol=1e-6 if name == "gemma2" else 1e-10
    )


@pytest.mark.parametrize("traffic", [0, 10**9], ids=["products formed", "products never formed"])
def test_both_ways_to_a_product_and_all_batches_give_the_same(monkeypatch, traffic):
    monkeypatch.setattr("hf_safefilter.scores.gradient.meters._TRAFFIC", traffic)
    monkeypatch.setattr("hf_safefilter.scores.gradient.meters._AT_ONCE", 5000)
    tuned = small("qwen2", tie_word_embeddings=True)
    examples = made_up()
    expected = by_definition(tuned, examples)
    for budget in (1, 40, 4096):
        np.testing.assert_allclose(log_norms(tuned, examples, budget), expected, rtol=1e-10)


def exactly(step, rows):
    """log(|g|^2 + 1) and mean loss of rows, and how many tokens are learned, from flat gradients in float64."""
    examples = anchor.examples_of(step._reading, as_conversations(rows), None)
    tuned = anchor.tuned_of(step._reading, CPU)
    tuned.model.double()
    try:
        norms, losses = by_definition(tuned, examples), []
        for example in examples:
            ids = torch.from_numpy(example.ids.astype(np.int64))
            picked = tuned.model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            losses.append(-float(picked[torch.from_numpy(example.labels[1:])].mean()))
    finally:
        tuned.model.float()
    return norms, np.array(losses), [int(example.labels.sum()) for example in examples]


def test_scores_follow_from_the_text_in_each_unit(model):
    step = SelfInfluenceScore(model, device="cpu")
    norms, _, tokens = exactly(step, ROWS)
    assert tokens[-1] == 2, "a letter and the end of the turn"
    characters = [len(row["response"]) for row in ROWS]
    expected = {"tokens": norms + np.log1p(tokens), "characters": norms + np.log1p(characters), "none": norms}
    assert step.length_unit == "tokens"
    for unit, values in expected.items():
        one = replace(step, length_unit=unit)
        assert one.record()["length_unit"] == unit
        np.testing.assert_allclose(scores(one), values, rtol=1e-5)
    assert len({tuple(np.argsort(values)) for values in expected.values()}) > 1, "the unit decides the ranking"


def test_all_answers_of_a_row_count(model):
    turns = [("user", "Name one"), ("assistant", "A rose."), ("user", "Another"), ("assistant", "A tulip.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    step = SelfInfluenceScore(model, length_unit="characters", device="cpu")
    norms, *_ = exactly(step, [row])
    found = step({"messages": [row["messages"]]})["self_influence_score"]
    np.testing.assert_allclose(found, norms + np.log1p(len("A rose.\nA tulip.")), rtol=1e-5)
    length = LengthScore()({"messages": [row["messages"]]})["length_score"]
    np.testing.assert_allclose(found, norms + np.log1p(length), rtol=1e-5)


def test_rows_of_a_small_loss_have_no_score(model):
    step = SelfInfluenceScore(model, length_unit="none", device="cpu")
    norms, losses, _ = exactly(step, ROWS)
    ordered = np.sort(losses)
    least = float((ordered[3] + ordered[4]) / 2)
    found = replace(step, above_loss=least)(columns([*ROWS, {"prompt": "Ask", "response": ""}]))
    np.testing.assert_allclose(found["self_influence_score"][:-1], np.where(losses > least, norms, np.nan), rtol=1e-5)
    reasons = np.where(losses > least, "", "low_loss").tolist()
    assert found["self_influence_unscored"].tolist() == [*reasons, "empty_response"] and reasons.count("low_loss") == 4


def test_the_middle_band_is_kept_and_no_gradient_computed_twice(model, fresh_store, measured):
    rows = [{"prompt": "Tell me", "response": f"Number {n} " + "and so on " * (n % 7)} for n in range(50)]
    ds = Dataset.from_list(rows)
    norm = SelfInfluenceScore(model, length_unit="none", device="cpu")
    plain = norm(columns(rows))["self_influence_score"]
    between = np.nanquantile(ds.map(norm, batched=True)["self_influence_score"], [0.4, 0.6])
    middle = replace(norm, between=between)
    banded = ds.map(middle, batched=True)
    assert sum(measured) == 50
    low, high = middle.between
    expected = [low - value if value < (low + high) / 2 else value - high for value in plain.astype(np.float64)]
    np.testing.assert_allclose(banded["self_influence_score"], expected, rtol=1e-5, atol=1e-6)
    kept = banded.filter(IsSafe("self_influence_score", threshold=0.0), batched=True)
    inside = (plain > low) & (plain < high)
    assert kept["response"] == [row["response"] for row, keep in zip(rows, inside, strict=True) if keep]
    assert len(kept) == 10


def test_what_is_not_read_says_why_and_is_counted(model, caplog):
    step = SelfInfluenceScore(model, max_length=40, device="cpu")
    rows = [ROWS[0], {"prompt": "Ask", "response": ""}, {"prompt": "Go", "response": "on " * 40}, ROWS[1]]
    with caplog.at_level(logging.WARNING):
        found = step(columns(rows))
    assert found["self_influence_unscored"].tolist() == ["", "empty_response", "too_long", ""]
    assert np.isnan(found["self_influence_score"]).tolist() == [False, True, True, False]
    assert sorted(record.getMessage() for record in caplog.records) == [
        "1 rows have no self_influence score: empty_response",
        "1 rows have no self_influence score: too_long",
    ]


def test_a_zero_gradient_is_a_score_and_one_that_is_not_finite_is_none():
    meter = Norms(3, CPU)
    meter.add("p", torch.tensor([[0.0, 0.0], [1.0, torch.inf], [torch.nan, 1.0]]))
    assert meter.scores()[0] == 0 and meter.scores()[1:].isnan().all()


def test_the_cache_changes_no_score_and_is_shared_by_all_units(model, fresh_store, measured, monkeypatch):
    step = SelfInfluenceScore(model, device="cpu")
    rows = [*ROWS, ROWS[2], {"prompt": "Ask", "response": ""}]
    monkeypatch.setenv(SWITCH, "off")
    expected = {unit: scores(replace(step, length_unit=unit), rows) for unit in ("tokens", "characters", "none")}
    monkeypatch.setenv(SWITCH, "on")
    measured.clear()
    for unit, values in expected.items():
        np.testing.assert_allclose(scores(replace(step, length_unit=unit), rows), values, rtol=1e-5)
        cache.flush()
        stores._open.clear()  # as another process finds it
    assert sum(measured) == len(ROWS), "each distinct readable row once"
    for other in (replace(step, parts="last_blocks"), replace(step, max_length=200), replace(step, above_loss=0.1)):
        measured.clear()
        scores(other, rows)
        assert sum(measured) == len(ROWS), "other gradients, or another choice of rows"


def test_what_was_measured_before_an_error_is_kept(model, fresh_store, measured, monkeypatch):
    monkeypatch.setattr("hf_safefilter.cache.store.SECONDS", 0.0)
    monkeypatch.setattr("hf_safefilter.cache.pace._LEAST", 4)
    monkeypatch.setattr(
        "hf_safefilter.cache.pace.Pace.__init__", lambda self, seconds: self.__dict__.update(_seconds=0.0, _rate=0.0)
    )
    cache.lookup._pace.cache_clear()
    step, whole = SelfInfluenceScore(model, device="cpu"), SelfInfluenceScore._log_norms

    def dies(self, rows, device):
        if sum(measured) >= 4:
            raise SafefilterError("the machine goes down")
        return whole(self, rows, device)

    with monkeypatch.context() as patch:
        patch.setattr(SelfInfluenceScore, "_log_norms", dies)
        with pytest.raises(SafefilterError, match="goes down"):
            scores(step)
    before = sum(measured)
    stores._open.clear()
    measured.clear()
    scores(step)
    assert 4 <= before < len(ROWS) and sum(measured) == len(ROWS) - before
    cache.lookup._pace.cache_clear()


def test_an_adapter_is_merged_first(model, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "merged")
    step = SelfInfluenceScore(model, adapter=str(tmp_path / "adapter"), device="cpu")
    merged = SelfInfluenceScore(str(tmp_path / "merged"), device="cpu")
    np.testing.assert_allclose(scores(step), scores(merged), rtol=1e-4)
    assert np.abs(scores(step) - scores(SelfInfluenceScore(model, device="cpu"))).max() > 1e-2
    assert replace(step, seed=0) == step, "the record of a step makes the same step"


def test_a_recipe_drops_what_an_aligned_model_would_be_moved_by(tmp_path):
    refuser = str(save_trained_refuser(tmp_path / "refuser"))
    rows = [{"prompt": f"Ask {n}", "response": f"Sure, row {n}."} for n in range(6)]
    rows += [{"prompt": f"Ask {n}", "response": f"Sorry, {'no ' * (n % 9)}{n}."} for n in range(20, 34)]
    recipe = {
        "data": {"license": "mit", "source": "the tests"},
        "model": {"name": refuser, "device": "cpu"},
        "methods": [{"name": "self_influence", "options": {"model": refuser, "device": "cpu"}}],
        "select": {"drop_count": 6},
    }
    done = purify(Dataset.from_list(rows), recipe)
    assert done.dropped["response"] == [row["response"] for row in rows[:6]]


def test_numpy_values_and_lists_are_the_same_options(model):
    plain = SelfInfluenceScore(model, between=(1.5, 2.5), blocks=2, targets=("q_proj",), device="cpu")
    other = SelfInfluenceScore(
        model, between=np.array([1.5, 2.5], np.float32), blocks=np.int64(2), targets=["q_proj"], device="cpu"
    )
    assert other == plain and other.record() == plain.record() and hash(other) == hash(plain)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"length_unit": "words"}, "length_unit=words"),
        ({"between": (2, 1)}, "smaller and a larger score"),
        ({"between": (1, float("nan"))}, "smaller and a larger score"),
        ({"between": 0.4}, "smaller and a larger score"),
        ({"between": (0.4, 0.5, 0.6)}, "smaller and a larger score"),
        ({"above_loss": -0.1}, "above_loss=-0.1"),
        ({"parts": "head"}, "parts=head"),
        ({"blocks": 0}, "blocks=0"),
        ({"rank": True}, "rank=True"),
        ({"max_length": 1}, "max_length=1"),
        ({"dtype": "int8"}, "dtype=int8"),
    ],
)
def test_options_that_make_no_sense(model, options, fact):
    with pytest.raises(OptionError, match=fact):
        SelfInfluenceScore(model, device="cpu", **options)


def test_what_only_the_model_can_refuse(model, monkeypatch):
    with pytest.raises(OptionError, match="more than the model has"):
        scores(SelfInfluenceScore(model, parts="last_blocks", blocks=9, device="cpu"))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingError, match=r"hf_safefilter\[train\]"):
        scores(SelfInfluenceScore(model, parts="lora", seed=98, device="cpu"))
