import re
from collections import Counter

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from hf_safefilter.errors import OptionError
from hf_safefilter.starter import LICENSE, NAMES, starter_path, starter_rows

UNSAFE, SAFE, OVER, NORMAL = (starter_rows(name) for name in NAMES)


def test_both_sides_answer_the_same_prompts_in_the_same_order():
    assert [row["prompt"] for row in UNSAFE] == [row["prompt"] for row in SAFE]
    assert len(UNSAFE) >= 100
    assert {row["label"] for row in UNSAFE} == {"unsafe"}
    assert {row["label"] for row in SAFE} == {"safe"}
    assert [row["category"] for row in UNSAFE] == [row["category"] for row in SAFE]
    assert len(Counter(row["category"] for row in UNSAFE)) >= 10


def test_nothing_is_empty_or_said_twice():
    told = ((UNSAFE, "response"), (SAFE, "response"), (OVER, "prompt"), (UNSAFE, "prompt"), (NORMAL, "prompt"))
    for rows, field in told:
        texts = [row[field].strip() for row in rows]
        assert all(texts)
        assert len(set(texts)) == len(texts)
    assert not {row["prompt"] for row in OVER} & {row["prompt"] for row in UNSAFE}
    assert not {row["prompt"] for row in NORMAL} & {row["prompt"] for row in (*UNSAFE, *OVER)}


def test_length_and_layout_do_not_give_the_side_away():
    lengths = [np.array([len(row["response"]) for row in rows]) for rows in (UNSAFE, SAFE)]
    assert 0.95 < lengths[0].mean() / lengths[1].mean() < 1.05
    truth = np.repeat([1, 0], [len(UNSAFE), len(SAFE)])
    assert 0.45 < roc_auc_score(truth, np.concatenate(lengths)) < 0.55
    lists = [sum("1. " in row["response"] for row in rows) for rows in (UNSAFE, SAFE)]
    assert abs(lists[0] - lists[1]) <= 2


def test_no_unsafe_answer_holds_anything_usable_on_its_face():
    for row in UNSAFE:
        text = re.sub(r"\b[1-4]\. ", "", row["response"])
        assert not re.search(r"https?:|```|\d", text), row["prompt"]


def test_over_refusal_prompts_sound_harmful_in_several_ways():
    assert len(OVER) >= 100 and len(NORMAL) >= 100
    assert {row["label"] for row in OVER} == {"borderline-safe"}
    assert len(Counter(row["category"] for row in OVER)) >= 5


def test_the_card_names_the_files_and_the_licence():
    card = (starter_path() / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == LICENSE
    assert f"{len(UNSAFE)} harmful requests from {len({row['category'] for row in UNSAFE})} categories" in card
    for name in NAMES:
        assert f"{name}.jsonl" in card


def test_an_unknown_set_gets_its_nearest_name():
    with pytest.raises(OptionError, match="did you mean 'unsafe'"):
        starter_rows("unsave")
