"""Streamed scores against flat vectors in float64: every architecture, every form, whatever the batches."""

import logging

import numpy as np
import pytest
import torch
from small import PAD, by_definition, flat_gradient, made_up, random_anchor, small

from hf_safefilter.scores.gradient import batched
from hf_safefilter.scores.gradient import row_scores as measure
from hf_safefilter.scores.gradient.examples import Example
from hf_safefilter.scores.gradient.fit import combined
from hf_safefilter.scores.gradient.meters import Exact, by_token
from hf_safefilter.scores.gradient.parts import Parts
from hf_safefilter.scores.gradient.single_row import measure_row, streamed

X = [[1, 2, 3], [2, 0, -1], [-1, 1, 0], [0, 3, 1]]
HARM, SAFE_1, SAFE_2 = [[1, 0, 1], [0, 2, 2]], [[0, 1, 0], [-1, 0, 1]], [[1, 1, 0], [0, 0, -1]]

FAST = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma2": {},
    "gemma3": {},
    "phi3": {},
    "gpt_neox": {},
}


def of_vectors(vectors):
    return [{"p": torch.tensor(one, dtype=torch.float64)} for one in vectors]


def scores(tuned, examples, anchor, budget=None):
    return measure.measure(tuned, examples, lambda rows: Exact(anchor, rows), budget)[0]


def test_golden_values():
    harm, first, second = (combined([of_vectors(rows)])["p"] for rows in (HARM, SAFE_1, SAFE_2))
    exact = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(harm, [0.3535533906, 0.3535533906, 0.7071067812], **exact)
    np.testing.assert_allclose(first, [-0.3535533906, 0.5, 0.3535533906], **exact)
    np.testing.assert_allclose(second, [0.3535533906, 0.3535533906, -0.5], **exact)
    total = combined([of_vectors(HARM), of_vectors(SAFE_1), of_vectors(SAFE_2)])
    meter = Exact(total, 4)
    meter.add("p", torch.tensor(X, dtype=torch.float64))
    np.testing.assert_allclose(meter.scores(), [0.5115950940, -0.0654929147, -0.6035533906, -0.2044243671], **exact)


@pytest.mark.parametrize("name", FAST)
def test_many_rows_in_one_backward_are_exact(name):
    tuned = small(name.split(",")[0], **FAST[name])
    examples, anchor = made_up(), random_anchor(tuned)
    expected = by_definition(tuned, examples, anchor)
    assert measure.fast_rules(tuned) is not None
    # Gemma's norms compute in float32 whatever they are given, in another order for another batch.
    close = 1e-8 if "gemma" in name else 1e-10
    np.testing.assert_allclose(scores(tuned, examples, anchor), expected, rtol=0, atol=close)
    alone = Exact(anchor, len(examples))
    for row, example in enumerate(examples):
        measure_row(tuned, example, alone, row)
    np.testing.assert_allclose(alone.scores(), expected, rtol=0, atol=close)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_float32_is_close_and_batches_do_not_matter(name):
    tuned = small(name, dtype=torch.float32, tie_word_embeddings=True)
    examples, anchor = made_up((9, 4, 14, 9, 2, 30, 61, 120)), random_anchor(tuned)
    found = [scores(tuned, examples, anchor, budget) for budget in (1, 50, 4096)]
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], rtol=0, atol=1e-6)
    turned = scores(tuned, examples[::-1], anchor, 64)[::-1]
    np.testing.assert_allclose(turned, found[0], rtol=0, atol=1e-6)
    tuned.model.double()
    np.testing.assert_allclose(found[0], by_definition(tuned, examples, anchor), rtol=0, atol=1e-5)


@pytest.mark.parametrize("traffic", [0, 10**9], ids=["products formed", "products never formed"])
def test_both_ways_to_a_product_are_exact(monkeypatch, traffic):
    monkeypatch.setattr("hf_safefilter.scores.gradient.meters._TRAFFIC", traffic)
    monkeypatch.setattr("hf_safefilter.scores.gradient.meters._AT_ONCE", 5000)
    tuned = small("qwen2", tie_word_embeddings=True)
    examples, anchor = made_up(), random_anchor(tuned)
    np.testing.assert_allclose(
        scores(tuned, examples, anchor), by_definition(tuned, examples, anchor), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("parts", [Parts("last_blocks", blocks=2), Parts("lora", rank=4)], ids=lambda parts: parts.kind)
def test_forms_with_fewer_parameters(parts):
    tuned = small("qwen2", parts)
    assert 0 < len(tuned.parameters) < len(dict(tuned.model.named_parameters()))
    examples, anchor = made_up(), random_anchor(tuned)
    assert measure.fast_rules(tuned) is not None
    np.testing.assert_allclose(
        scores(tuned, examples, anchor), by_definition(tuned, examples, anchor), rtol=0, atol=1e-10
    )


def test_adapters_are_the_same_everywhere_and_their_second_factor_counts():
    first, again = (small("llama", Parts("lora", seed=7)) for _ in range(2))
    state = torch.get_rng_state()
    other = small("llama", Parts("lora", seed=8))
    torch.set_rng_state(state)
    assert all(torch.equal(one, again.parameters[name]) for name, one in first.parameters.items())
    assert not all(torch.equal(one, other.parameters[name]) for name, one in first.parameters.items())
    gradient = streamed(first, made_up()[0])
    assert all((one == 0).all() == (".lora_A." in name) for name, one in gradient.items())


def test_the_padding_token_of_a_row_counts_in_the_head_but_not_in_the_embedding():
    tuned = small("llama", tie_word_embeddings=True)
    assert tuned.model.get_input_embeddings().padding_idx == PAD
    example = Example(np.array([PAD, 5, PAD, 7, PAD], dtype=np.int32), np.array([0, 0, 1, 1, 1], dtype=bool))
    anchor = random_anchor(tuned)
    np.testing.assert_allclose(
        scores(tuned, [example, *made_up()], anchor)[:1], by_definition(tuned, [example], anchor), rtol=0, atol=1e-10
    )


def test_unknown_kinds_of_modules_go_row_by_row_and_say_so_once(caplog):
    tuned = small("opt")  # positions are an embedding that all rows share
    examples, anchor = made_up(), random_anchor(tuned)
    measure.fast_rules.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = scores(tuned, examples, anchor)
    np.testing.assert_allclose(found, by_definition(tuned, examples, anchor), rtol=0, atol=1e-10)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "OPTForCausalLM takes one row at a time"
    ]


def test_a_parameter_used_past_its_module_is_noticed():
    tuned = small("llama")
    block = tuned.model.model.layers[1]
    plain = block.mlp.forward
    block.mlp.forward = lambda states: plain(states) + states * block.input_layernorm.weight.mean()
    examples, anchor = made_up(), random_anchor(tuned)
    assert not batched.agrees(tuned, batched.rules_of(tuned))
    assert measure.fast_rules(tuned) is None
    np.testing.assert_allclose(
        scores(tuned, examples, anchor), by_definition(tuned, examples, anchor), rtol=0, atol=1e-10
    )


def test_nothing_stays_behind_between_rows():
    tuned = small("llama")
    first, second, *_ = made_up()
    streamed(tuned, first)
    again = streamed(tuned, second)
    np.testing.assert_allclose(
        torch.cat([again[name].flatten() for name in tuned.parameters]), flat_gradient(tuned, second), atol=1e-12
    )
    assert all(one.grad is None and not one.requires_grad for one in tuned.model.parameters())


def test_equal_rows_are_read_once_and_bad_ones_not_at_all(monkeypatch):
    tuned = small("llama")
    examples = made_up()
    unread = Example(examples[0].ids[:0], examples[0].labels[:0], reason="empty_response")
    doubled = [*examples, unread, *examples]
    seen = []
    monkeypatch.setattr(measure, "measure_rows", lambda *given: seen.extend(given[2]) or batched.measure_rows(*given))
    found = scores(tuned, doubled, random_anchor(tuned))
    assert len(seen) == len(examples)
    np.testing.assert_array_equal(found[: len(examples)], found[len(examples) + 1 :])
    assert np.isnan(found).tolist() == [row == len(examples) for row in range(len(doubled))]


def test_rows_alike_but_for_their_labels_are_two_rows():
    tuned = small("llama")
    anchor = random_anchor(tuned)
    (one,) = made_up((9,))
    other = Example(one.ids, np.arange(9) >= 2)
    found = scores(tuned, [one, other], anchor)
    np.testing.assert_allclose(found, by_definition(tuned, [one, other], anchor), rtol=0, atol=1e-10)
    assert abs(found[0] - found[1]) > 1e-4


def test_rows_without_a_meaning_spoil_no_other_row():
    tuned = small("llama")
    examples, anchor = made_up(), random_anchor(tuned)
    expected = scores(tuned, examples, anchor)
    with torch.no_grad():
        tuned.model.get_input_embeddings().weight[319] = torch.nan
    spoilt = Example(np.array([3, 319, 4, 5], dtype=np.int32), np.array([0, 0, 1, 1], dtype=bool))
    found, reasons = measure.measure(tuned, [spoilt, *examples], lambda rows: Exact(anchor, rows), 64)
    clean = [319 not in one.ids for one in examples]
    assert reasons == ["nan_loss", *("" if one else "nan_loss" for one in clean)] and sum(clean) > 3
    np.testing.assert_allclose(found[1:][clean], expected[clean], rtol=0, atol=1e-10)


def test_a_zero_gradient_is_no_score():
    tuned = small("llama", Parts("last_blocks"))
    with torch.no_grad():
        tuned.model.lm_head.weight.zero_()
    found, reasons = measure.measure(tuned, made_up(), lambda rows: Exact(random_anchor(tuned), rows))
    assert np.isnan(found).all() and set(reasons) == {"zero_gradient"}


def test_a_smaller_batch_follows_when_memory_runs_out(monkeypatch):
    tuned = small("llama")
    examples, anchor = made_up(), random_anchor(tuned)
    expected = scores(tuned, examples, anchor)

    def scarce(tuned, rules, rows, make_meter, plain=measure._measured):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("made up")
        return plain(tuned, rules, rows, make_meter)

    monkeypatch.setattr(measure, "_measured", scarce)
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row].ids))
    rules = measure.fast_rules(tuned)

    def run(batch):
        return measure._measured(tuned, rules, [examples[row] for row in batch], lambda rows: Exact(anchor, rows))

    found = np.full(len(examples), np.nan)
    with batched.hooked(rules):
        for batch, (some, _) in measure._within_memory(tuned, examples, order, run, 500):
            found[batch] = some
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_tokens_are_summed_by_row():
    ids = torch.tensor([[4, 2, 4], [4, 4, 4]])
    back = torch.arange(6.0).view(2, 3, 1)
    summed, rows, tokens = by_token(ids, back)
    assert list(zip(rows.tolist(), tokens.tolist(), summed.flatten().tolist(), strict=True)) == [
        (0, 2, 1.0),
        (0, 4, 2.0),
        (1, 4, 12.0),
    ]
