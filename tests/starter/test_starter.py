import re
from collections import Counter

import numpy as np
import pytest
import yaml

from hf_safefilter.errors import OptionError
from hf_safefilter.starter import LICENSE, NAMES, TRAITS, starter_path, starter_rows

UNSAFE, SAFE, BENIGN, OVER, NORMAL = (starter_rows(name) for name in NAMES)
ANSWERED = {"unsafe": UNSAFE, "safe": SAFE, "benign": BENIGN}
CATEGORIES = sorted({row["category"] for row in UNSAFE})
TASKS = sorted({row["category"] for row in BENIGN})


def test_both_sides_answer_the_same_prompts_in_the_same_order():
    for field in ("prompt", "category", "language"):
        assert [row[field] for row in UNSAFE] == [row[field] for row in SAFE]
    assert {row["label"] for row in UNSAFE} == {"unsafe"}
    assert {row["label"] for row in SAFE} == {row["label"] for row in BENIGN} == {"safe"}
    assert set(Counter(row["category"] for row in UNSAFE).values()) == {len(UNSAFE) // len(CATEGORIES)}
    assert len(UNSAFE) >= 200 and len(BENIGN) >= 200 and len(CATEGORIES) >= 10


def test_nothing_is_empty_or_said_twice():
    told = ((rows, field) for rows in ANSWERED.values() for field in ("prompt", "response"))
    for rows, field in (*told, (OVER, "prompt"), (NORMAL, "prompt")):
        texts = [row[field] for row in rows]
        assert all(text and text == text.strip() for text in texts)
        assert len(set(texts)) == len(texts)
    prompts = [row["prompt"] for rows in (UNSAFE, BENIGN, OVER, NORMAL) for row in rows]
    assert len(set(prompts)) == len(prompts)
    responses = [row["response"] for rows in ANSWERED.values() for row in rows]
    assert len(set(responses)) == len(responses)


def test_every_answered_row_has_the_same_fields_and_no_answer_is_cut_off():
    for name, rows in ANSWERED.items():
        for row in rows:
            assert list(row) == ["prompt", "response", "label", "category", "language"]
            text = row["response"]
            assert text.count('"') % 2 == 0 and text.count("«") == text.count("»"), text
            # benign answers may end in a signature or in code
            assert name == "benign" or text[-1] in '.!?"»«', text


def test_other_languages_are_on_every_side_alike():
    counts = {name: Counter(row["language"] for row in rows) for name, rows in ANSWERED.items()}
    assert counts["unsafe"] == counts["safe"]
    assert set(counts["unsafe"]) == set(counts["benign"]) == {"en", "de", "es", "fr"}
    for language in ("de", "es", "fr"):
        assert abs(counts["unsafe"][language] - counts["benign"][language]) <= 2


@pytest.mark.parametrize("other", [SAFE, BENIGN], ids=["safe", "benign"])
def test_length_does_not_give_the_unsafe_side_away(other):
    assert 0.95 < lengths(UNSAFE).mean() / lengths(other).mean() < 1.05
    assert 0.45 < auroc(lengths(UNSAFE), lengths(other)) < 0.55


@pytest.mark.parametrize("category", CATEGORIES)
def test_length_does_not_give_the_unsafe_side_of_a_category_away(category):
    unsafe, safe = (lengths(rows, category) for rows in (UNSAFE, SAFE))
    assert 0.40 < auroc(unsafe, safe) < 0.60
    assert 0.40 < auroc(unsafe, lengths(BENIGN)) < 0.60


@pytest.mark.parametrize("task", TASKS)
def test_no_kind_of_benign_task_is_known_by_its_length(task):
    assert 0.40 < auroc(lengths(UNSAFE), lengths(BENIGN, task)) < 0.60


def test_lists_do_not_give_a_side_away():
    shares = [np.mean([is_list(row["response"]) for row in rows]) for rows in ANSWERED.values()]
    assert max(shares) - min(shares) < 0.10
    assert min(shares) > 0.05


def test_the_answers_differ_in_length_on_every_side():
    for rows in ANSWERED.values():
        low, high = np.percentile(lengths(rows), [5, 95])
        assert low < 130 and high > 500


def test_no_unsafe_answer_holds_anything_usable_on_its_face():
    for row in UNSAFE:
        text = re.sub(r"\b[1-5]\. ", "", row["response"])
        assert not re.search(r"https?:|```|\d", text), row["prompt"]


@pytest.mark.parametrize("trait", TRAITS)
def test_a_trait_is_shown_and_not_shown_at_like_lengths(trait):
    rows = starter_rows(trait)
    shown, plain = ([row for row in rows if row["label"] == label] for label in ("unsafe", "safe"))
    assert [row["prompt"] for row in shown] == [row["prompt"] for row in plain] and len(shown) >= 20
    assert len({row["response"] for row in rows}) == len(rows) == len(shown) + len(plain)
    assert 0.40 < auroc(lengths(shown), lengths(plain)) < 0.60
    assert f"`{trait}.jsonl`" in (starter_path() / "README.md").read_text(encoding="utf-8")


def test_over_refusal_prompts_sound_harmful_in_several_ways():
    assert len(OVER) >= 100 and len(NORMAL) >= 100
    assert {row["label"] for row in OVER} == {"borderline-safe"}
    assert len(Counter(row["category"] for row in OVER)) >= 5


def test_some_benign_rows_touch_the_harmful_subjects():
    assert Counter(row["category"] for row in BENIGN)["borderline"] >= 40


def test_the_card_names_the_files_the_numbers_and_the_licence():
    card = (starter_path() / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == LICENSE
    assert set(header["language"]) == {row["language"] for row in (*UNSAFE, *BENIGN)}
    splits = {split["split"]: split["path"] for split in header["configs"][0]["data_files"]}
    assert splits == {name: f"{name}.jsonl" for name in ANSWERED}
    text = " ".join(card.split())
    assert f"{len(UNSAFE)} harmful requests from {len(CATEGORIES)} categories" in text
    assert f"{len(BENIGN)} benign requests" in text
    for name in NAMES:
        assert f"{name}.jsonl" in card
    for rows in ANSWERED.values():
        assert f" {np.median(lengths(rows)):.0f} |" in card
        assert f" {lengths(rows).min()} - {lengths(rows).max()} |" in card
    assert f"| {auroc(lengths(UNSAFE), lengths(SAFE)):.2f} | {auroc(lengths(UNSAFE), lengths(BENIGN)):.2f} |" in card


def test_an_unknown_set_gets_its_nearest_name():
    with pytest.raises(OptionError, match="did you mean 'unsafe'"):
        starter_rows("unsave")


def lengths(rows, category=None):
    """Lengths of the responses in characters, of all rows or of one category."""
    return np.array([len(row["response"]) for row in rows if category in (None, row["category"])])


def auroc(above, below):
    """Chance that a value of the first kind exceeds one of the second; ties count half."""
    return float(np.mean((above[:, None] > below) + 0.5 * (above[:, None] == below)))


def is_list(text):
    return bool(re.search(r"(^|\s)1\. ", text)) or len(re.findall(r"^- ", text, flags=re.MULTILINE)) >= 2
