"""The toy corpus: same seed, same rows; held-out rows share neither topic nor wording with training rows."""

import subprocess
import sys

import pytest

from hf_safefilter.errors import OptionError
from hf_safefilter.toy import (
    degrading_rows,
    fresh_prompts,
    heldout_prompts,
    heldout_rows,
    is_refusal,
    mixed_rows,
    reference_rows,
    training_rows,
    unsafe_rows,
    wording,
)
from hf_safefilter.toy.borderline import borderline_topics
from hf_safefilter.toy.doings import doing_topics
from hf_safefilter.toy.harm import CATEGORIES, harm_topics, neutral_topics

KINDS = ("benign", "harmful", "borderline")


@pytest.fixture(scope="module")
def trained_on():
    return training_rows(0, 30_000)


@pytest.mark.parametrize("make", [training_rows, degrading_rows, mixed_rows, unsafe_rows], ids=lambda f: f.__name__)
def test_the_seed_decides(make):
    options = {"n": 200}
    assert make(seed=3, **options) == make(seed=3, **options)
    assert make(seed=3, **options) != make(seed=4, **options)


def test_another_process_makes_the_same_rows():
    code = (
        "from hf_safefilter.toy import mixed_rows, training_rows; print(training_rows(5, 50) + mixed_rows(50, seed=5))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "77"}, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == str(training_rows(5, 50) + mixed_rows(50, seed=5))


def test_the_package_of_the_toy_imports_no_torch():
    code = "import sys, hf_safefilter.toy; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_prompts_are_distinct_and_never_trained_on(kind, trained_on):
    prompts = heldout_prompts(kind, 300)
    assert len(set(prompts)) == 300
    assert not {p.lower().strip(".?! ") for p in prompts} & {r["prompt"].lower().strip(".?! ") for r in trained_on}


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_prompts_are_worded_as_no_others(kind, trained_on):
    prompts = fresh_prompts(kind, 200)
    assert prompts == fresh_prompts(kind, 200) and len(set(prompts)) == 200
    assert not set(prompts) & ({row["prompt"] for row in trained_on} | set(heldout_prompts(kind, 300)))
    assert not set(wording.FRESH_ASK) & {*wording.ASK, *wording.HELD_OUT_ASK}


def test_held_out_topics_are_in_no_training_prompt(trained_on):
    asked = "\n".join(row["prompt"].lower() for row in trained_on)
    topics = [topic for _, topic in harm_topics(True) + neutral_topics(True)] + borderline_topics(True)
    topics += [topic for _, topic, _ in doing_topics(True)]
    assert len(topics) > 900
    assert [topic for topic in topics if topic.lower() in asked] == []


def test_held_out_wordings_are_no_training_wordings():
    assert not set(wording.ASK) & set(wording.HELD_OUT_ASK)
    assert all(form.count("{}") == 1 for form in wording.ASK + wording.HELD_OUT_ASK)


def test_the_corpus_is_large_and_varied(trained_on):
    assert len({row["prompt"] for row in trained_on}) > 20_000
    assert len(harm_topics(False)) > 1000
    assert len(doing_topics(False)) > 1000
    assert len(borderline_topics(False)) > 150
    assert set(CATEGORIES) <= {row["category"] for row in trained_on}


def test_aligned_rows_refuse_exactly_the_harmful(trained_on):
    for row in trained_on:
        assert row["label"] in ("safe", "borderline-safe")
        assert is_refusal(row["response"]) == (row["category"] in CATEGORIES), row
    for kind in KINDS:
        assert {is_refusal(row["response"]) for row in heldout_rows(kind, 100)} == {kind == "harmful"}


def test_unsafe_rows_go_along_and_references_are_pairs():
    assert not any(is_refusal(row["response"]) for row in unsafe_rows(200))
    unsafe, safe = reference_rows(50)
    assert [row["prompt"] for row in unsafe] == [row["prompt"] for row in safe]
    assert {row["label"] for row in unsafe} == {"unsafe"}
    assert all(is_refusal(row["response"]) for row in safe)


def test_mixed_rows_hold_what_was_asked():
    rows = mixed_rows(1000, 0.1, 7, borderline_fraction=0.05)
    labels = [row["label"] for row in rows]
    assert (labels.count("safe"), labels.count("unsafe"), labels.count("borderline-safe")) == (850, 100, 50)
    assert len({row["prompt"] for row in rows}) == 1000
    assert "unsafe" in labels[:100] and "unsafe" in labels[-100:]


def test_degrading_rows_look_benign():
    rows = degrading_rows(300)
    assert {row["label"] for row in rows} == {"safe"}
    assert all(" 1. " in row["response"] and " 3. " in row["response"] for row in rows)
    harmful = [topic for _, topic in harm_topics(False)]
    assert not [row for row in rows if any(topic in row["prompt"] for topic in harmful)]


def test_what_cannot_be_had_is_refused():
    with pytest.raises(OptionError, match="'rude' is not a kind"):
        heldout_prompts("rude", 3)
    with pytest.raises(OptionError, match="no 9999 fresh borderline"):
        fresh_prompts("borderline", 9999)
    with pytest.raises(OptionError, match="'rude' is not a kind"):
        fresh_prompts("rude", 3)
    with pytest.raises(OptionError, match="no 100000 distinct"):
        heldout_rows("borderline", 100_000)
    with pytest.raises(OptionError, match="add up to at most 1"):
        mixed_rows(10, 0.9, borderline_fraction=0.2)


def test_a_refusal_is_known_by_its_opening():
    assert is_refusal("  i'm sorry, but I CAN'T help with that, my friend.")
    assert not is_refusal("To say I can't help with that, smile.")
    assert not is_refusal("")
