"""From rows of text to an anchor and a score; what is refused, and what is counted."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from small import by_definition, flat_gradient, made_up, small
from small_models import save_small_model
from stand_in import safe_rows, unsafe_rows

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError
from hf_safefilter.model import load
from hf_safefilter.scores.gradient import GradientAnchor, GradientScore, anchor, fit_gradient
from hf_safefilter.scores.gradient.examples import NO_LABELS, read_examples


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("models") / "llama", tie_word_embeddings=True))


@pytest.fixture(scope="module")
def fitted(model):
    return fit_gradient(model, unsafe_rows(4), safe_rows(3), device="cpu")


def tokenizer_of(fitted):
    return load.tokenizer(anchor._key(fitted.facts))


def flat_of(fitted, rows, most=None):
    """Exact flat gradients of rows, in float64."""
    examples = read_examples(
        tokenizer_of(fitted), as_conversations(rows), max_length=256, chat_template=None, most=most
    )
    tuned = anchor.tuned_of(fitted.facts, torch.device("cpu"))
    tuned.model.double()
    try:
        return [flat_gradient(tuned, one) for one in examples], list(tuned.parameters)
    finally:
        tuned.model.float()


def test_the_anchor_is_the_mean_of_unit_gradients_each_from_nothing(fitted):
    (unsafe, names), (safe, _) = flat_of(fitted, unsafe_rows(4), 10), flat_of(fitted, safe_rows(3), 10)

    def mean(gradients):
        return torch.stack([one / one.norm() for one in gradients]).mean(0)

    found = torch.cat([fitted.tensors()[name].flatten() for name in names]).double()
    expected = mean(unsafe) - mean(safe)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    # What the published code computes: gradients that add up from row to row.
    added_up = mean(torch.stack(unsafe).cumsum(0)) - mean(torch.stack(safe).cumsum(0))
    assert (found - added_up).norm() > 0.1 * expected.norm()
    assert {one.dtype for one in fitted.tensors().values()} == {torch.float32}


def test_scores_follow_from_the_text(fitted):
    rows = [*unsafe_rows(6), *safe_rows(6), {"prompt": "Half", "response": ""}]
    flat, names = flat_of(fitted, rows[:-1])
    whole = torch.cat([fitted.tensors()[name].flatten() for name in names]).double()
    expected = [float(g @ whole / g.norm()) for g in flat]
    scored = Dataset.from_list(rows).map(GradientScore(fitted, device="cpu"), batched=True, batch_size=5)
    np.testing.assert_allclose(scored["gradient_score"][:-1], expected, rtol=0, atol=1e-5)
    assert np.isnan(scored["gradient_score"][-1])
    assert scored["gradient_unscored"][:] == [""] * 12 + ["empty_response"]
    assert min(scored["gradient_score"][:6]) > max(scored["gradient_score"][6:12])


def test_reasons_are_counted_in_the_log(fitted, caplog):
    batch = {"prompt": ["a", "b", "c"], "response": ["", "", "fine"]}
    with caplog.at_level(logging.WARNING):
        GradientScore(fitted, device="cpu")(batch)
    assert [record.getMessage() for record in caplog.records] == ["2 rows have no gradient score: empty_response"]


def test_labels_are_the_response_and_its_end(fitted):
    rows = [{"prompt": "Name a flower", "response": "A rose, of course."}]
    tokenizer = tokenizer_of(fitted)
    (whole,) = read_examples(tokenizer, as_conversations(rows), max_length=None, chat_template=None)
    (cut,) = read_examples(tokenizer, as_conversations(rows), max_length=None, chat_template=None, most=3)
    assert tokenizer.decode(whole.ids[whole.labels]) == "A rose, of course.<|end|>"
    assert whole.labels.tolist() == (np.arange(len(whole.ids)) >= whole.first).tolist()
    assert cut.first == whole.first and cut.ids.tolist() == whole.ids[: whole.first + 3].tolist()
    assert cut.labels.tolist() == whole.labels[: whole.first + 3].tolist()


def test_labels_are_every_answer_that_is_trained_on(fitted):
    turns = [("user", "Name a flower"), ("assistant", "A rose."), ("user", "Another"), ("assistant", "A tulip.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    aside = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "weight": 0}]
    tokenizer = tokenizer_of(fitted)
    rows = as_conversations([{"messages": messages}, {"messages": [*aside, *messages]}])
    both, trained = read_examples(tokenizer, rows, max_length=None, chat_template=None)
    assert tokenizer.decode(both.ids[both.labels]) == "A rose.<|end|>A tulip.<|end|>"
    assert tokenizer.decode(trained.ids[trained.labels]) == "A rose.<|end|>A tulip.<|end|>"
    first = len(tokenizer("A rose.<|end|>", add_special_tokens=False)["input_ids"])
    (cut,) = read_examples(tokenizer, rows[:1], max_length=None, chat_template=None, most=first + 2)
    assert cut.labels.sum() == first + 2 and cut.ids.tolist() == both.ids[: len(cut.ids)].tolist()


def test_a_row_that_is_too_long_is_not_read(fitted):
    rows = as_conversations([{"prompt": "Go", "response": "on " * 40}, {"prompt": "Go", "response": "on"}])
    long, short = read_examples(tokenizer_of(fitted), rows, max_length=30, chat_template=None)
    assert (long.reason, len(long.ids), len(long.labels)) == ("too_long", 0, 0)
    assert short.reason == "" and len(short.ids) <= 30


def test_control_tokens_in_a_row_stay_text(fitted):
    rows = [{"prompt": "a", "response": "b<|end|><|user|>c"}]
    (found,) = read_examples(tokenizer_of(fitted), as_conversations(rows), max_length=None, chat_template=None)
    ends = np.flatnonzero(found.ids == tokenizer_of(fitted).convert_tokens_to_ids("<|end|>"))
    assert len(ends) == 2 and ends[-1] == len(found.ids) - 1


def test_a_text_of_one_token_has_no_label(fitted):
    tokenizer = tokenizer_of(fitted)
    bare = type(tokenizer).from_pretrained(fitted.facts["model"])
    bare.backend_tokenizer.post_processor = None
    bare.eos_token = None
    (found,) = read_examples(bare, as_conversations([{"text": "a"}]), max_length=None, chat_template=None)
    assert found.reason == NO_LABELS and len(found.ids) == 0


def test_further_safe_sets_are_each_subtracted_in_full(model):
    first = fit_gradient(model, unsafe_rows(2), safe_rows(2), device="cpu")
    both = fit_gradient(model, unsafe_rows(2), safe_rows(2), more_safe=[safe_rows(5)[2:]], device="cpu")
    flat, names = flat_of(both, safe_rows(5)[2:], 10)
    share = torch.stack([one / one.norm() for one in flat]).mean(0)
    difference = torch.cat([(first.tensors()[name] - both.tensors()[name]).flatten() for name in names])
    torch.testing.assert_close(difference.double(), share, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"parts": "lora"}, {"parts": "last_blocks", "blocks": 2}, {"projection": 64}])
def test_other_forms_score_too(model, options):
    fitted = fit_gradient(model, unsafe_rows(3), safe_rows(3), device="cpu", **options)
    found = GradientScore(fitted, device="cpu")({"prompt": ["a", "b"], "response": ["c", "A longer one."]})
    assert np.isfinite(found["gradient_score"]).all()
    if "projection" in options:
        assert {name: one.shape for name, one in fitted.tensors().items()} == {"projected": (64,)}
    again = fit_gradient(model, unsafe_rows(3), safe_rows(3), device="cpu", **options)
    for name, one in fitted.tensors().items():
        torch.testing.assert_close(again.tensors()[name], one, rtol=1e-5, atol=1e-7)


def test_an_anchor_in_several_files_is_one_anchor(model, monkeypatch, tmp_path, fitted):
    monkeypatch.setattr(anchor, "_SHARD", 20_000)
    cut = fit_gradient(model, unsafe_rows(4), safe_rows(3), device="cpu")
    assert len(cut.files) > 3
    for name, one in fitted.tensors().items():
        torch.testing.assert_close(cut.tensors()[name], one)
    cut.save(tmp_path / "anchor")
    assert GradientAnchor.load(tmp_path / "anchor") == cut
    (tmp_path / "anchor" / "anchor-00001.safetensors").write_bytes(b"other bytes")
    with pytest.raises(IntegrityError, match="anchor-00001"):
        GradientAnchor.load(tmp_path / "anchor")


@pytest.mark.parametrize(
    ("unsafe", "safe", "fact"),
    [
        ([], safe_rows(2), "no unsafe anchor row has a gradient"),
        (unsafe_rows(2), [], "no safe anchor row has a gradient"),
        (unsafe_rows(2), [{"prompt": "a", "response": ""}], "no safe anchor row"),
        (unsafe_rows(2), unsafe_rows(2), "the same rows"),
        (unsafe_rows(2), [*unsafe_rows(2), *unsafe_rows(2)], "the same rows"),
    ],
)
def test_sides_that_say_nothing(model, unsafe, safe, fact):
    with pytest.raises(DataError, match=fact):
        fit_gradient(model, unsafe, safe, device="cpu")


def test_sides_that_cancel_out(model):
    same_start = [{"prompt": "Ask", "response": "Sure, here is what you asked for today"}]
    other_end = [{"prompt": "Ask", "response": "Sure, here is what you asked for today, and more of it"}]
    with pytest.raises(DataError, match="the same mean gradient"):
        fit_gradient(model, same_start, other_end, anchor_tokens=3, device="cpu")


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"parts": "head"}, "parts=head"),
        ({"parts": "last_blocks", "blocks": 9}, "more than the model has"),
        ({"parts": "last_blocks", "blocks": 0}, "blocks=0"),
        ({"parts": "lora", "targets": ("c_attn",)}, "LoRA targets c_attn do not exist"),
        ({"parts": "lora", "targets": ()}, "none given"),
        ({"parts": "lora", "rank": -1}, "rank=-1"),
        ({"projection": 100}, "multiple of 64"),
        ({"projection": True}, "projection=True"),
        ({"anchor_tokens": 0}, "anchor_tokens=0"),
        ({"max_length": 1}, "max_length=1"),
        ({"seed": 1.5}, "seed=1.5"),
    ],
)
def test_options_that_make_no_sense(model, options, fact):
    with pytest.raises(OptionError, match=fact):
        fit_gradient(model, unsafe_rows(2), safe_rows(2), device="cpu", **options)


def test_lora_without_its_package_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingError, match=r"hf_safefilter\[train\]"):
        fit_gradient(model, unsafe_rows(2), safe_rows(2), parts="lora", seed=99, device="cpu")


def test_an_anchor_that_is_not_here():
    with pytest.raises(MissingError, match="not in the store"):
        GradientScore("sha256:" + "0" * 64)


def test_half_precision_is_near(model, fitted):
    half = fit_gradient(model, unsafe_rows(4), safe_rows(3), dtype="bfloat16", device="cpu")
    batch = {key: [row[key] for row in [*unsafe_rows(5), *safe_rows(5)]] for key in ("prompt", "response")}
    full = GradientScore(fitted, device="cpu")(batch)["gradient_score"]
    found = GradientScore(half, device="cpu")(batch)["gradient_score"]
    assert np.corrcoef(found, full)[0, 1] > 0.99 and np.abs(found - full).max() < 0.1


def test_by_definition_is_the_cosine_with_the_anchor():
    tuned = small("llama")
    (example,) = made_up((8,))
    flat = flat_gradient(tuned, example)
    itself, start = {}, 0
    for name, one in tuned.parameters.items():
        itself[name] = (flat / flat.norm())[start : start + one.numel()].view_as(one)
        start += one.numel()
    assert by_definition(tuned, [example], itself)[0] == pytest.approx(1.0)
