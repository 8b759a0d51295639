"""An audit says what is wrong with reference rows: each fault is planted into rows that have none."""

import json

import numpy as np
import pytest
from stand_in import StandIn

from hf_safefilter import audit_references
from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.audit import audit_index
from hf_safefilter.references.audit.languages import language_of
from hf_safefilter.references.audit.separation import held_out, numbered, separation
from hf_safefilter.starter import starter_rows

UNSAFE, SAFE, BENIGN = map(starter_rows, ("unsafe", "safe", "benign"))


def said(rows, change):
    """The rows with changed answers; `change` takes the answer and the index of the row."""
    return [{**row, "response": change(row["response"], place)} for place, row in enumerate(rows)]


def found(unsafe=UNSAFE, safe=SAFE, benign=BENIGN, **options):
    """(check, rows) -> check, of those that are not in order."""
    audit = audit_references(unsafe, safe, benign, **options)
    assert all(check.fix for check in audit.findings), "every finding says what to do"
    assert all("hf-safefilter" in check.fix or "`" in check.fix or check.check == "unread" for check in audit.findings)
    return {(check.check, check.rows): check for check in audit.findings}


def test_the_starter_set_has_nothing_serious_and_its_figures_are_all_there():
    audit = audit_references(UNSAFE, SAFE, BENIGN)
    assert not audit.serious and audit.counts == {"unsafe": 220, "safe": 220, "benign": 240}
    # eager answers hold more exclamation marks, refusals more semicolons; no other thing tells the sides apart
    assert {check.check for check in audit.findings} <= {"punctuation"}
    looked_at = {check.check for check in audit.checks}
    assert looked_at == {
        "length", "lengths", "layout", "punctuation", "opening words", "openings", "duplicates", "alike", "number",
        "refusals", "ordinary rows", "topic", "language", "unread",
    }  # fmt: skip


def test_length_alone():
    long = said(UNSAFE, lambda text, _: f"{text} {text}")
    check = found(unsafe=long)["length", "unsafe against safe"]
    ours, theirs = (np.array([len(row["response"]) for row in rows]) for rows in (long, SAFE))
    by_hand = np.mean((ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs))
    assert (check.severity, check.figure) == ("serious", pytest.approx(by_hand))
    assert 0.55 < check.low < check.figure < check.high < 1
    assert ("length", "unsafe against benign") in found(unsafe=long)
    assert found(safe=said(SAFE, lambda text, _: f"{text} {text}"))["length", "unsafe against safe"].high < 0.45


def test_a_difference_that_may_be_chance_is_a_warning():
    few = 24
    unsafe = said(UNSAFE[:few], lambda _, place: "a " * (50 + place))
    safe = said(SAFE[:few], lambda _, place: "b " * (71 - place))
    check = found(unsafe, safe)["length", "unsafe against safe"]
    assert check.severity == "warning" and check.figure > 0.55 > check.low


def test_length_within_one_category():
    category = UNSAFE[0]["category"]
    safe = [{**row, "response": row["response"] * 3} if row["category"] == category else row for row in SAFE]
    checks = found(safe=safe)
    assert checks["length", f"category {category}"].severity == "serious"
    assert len([key for key in checks if key[1].startswith("category")]) == 1


def test_answers_of_one_length():
    padded = [said(rows, lambda text, _: f"{text:.90}".ljust(90, ".")) for rows in (UNSAFE, SAFE)]
    check = found(*padded)["lengths", "unsafe and safe"]
    assert check.severity == "warning" and "other lengths" in check.sentence


def test_layout_alone():
    listed = said(UNSAFE, lambda text, place: f"1. {text}\n2. More of it." if place % 8 else text)
    checks = found(unsafe=listed)
    for other in ("safe", "benign"):
        check = checks["layout", f"unsafe against {other}"]
        assert check.severity == "serious" and check.low > 0.75


def test_opening_words_alone():
    eager = said(UNSAFE, lambda text, _: f"Sure thing, {text}")
    assert found(unsafe=eager)["opening words", "unsafe against benign"].severity == "serious"
    alike = said(SAFE, lambda text, place: f"I cannot do that. {text}" if place % 3 else text)
    check = found(safe=alike)["openings", "safe"]
    assert check.severity == "serious" and check.figure > 0.6


def test_rows_said_twice():
    check = found(unsafe=[*UNSAFE, *UNSAFE[5:8]])["duplicates", "unsafe"]
    assert (check.severity, check.figure) == ("warning", pytest.approx(3 / 223))
    assert "unsafe rows 220, 221, 222 (counted from 0)" in check.sentence
    assert found(safe=[*SAFE, *SAFE[:40]])["duplicates", "safe"].severity == "serious"


def test_answers_said_nearly_twice():
    again = [{**row, "prompt": f"{row['prompt']} Please."} for row in said(UNSAFE[:4], lambda text, _: f"{text}!")]
    check = found(unsafe=[*UNSAFE, *again])["alike", "unsafe"]
    assert check.severity == "warning" and check.sentence.startswith("4 of 224")


@pytest.mark.parametrize(("more", "alike"), [(19, True), (21, False)])
def test_four_fifths_of_the_runs_make_two_answers_alike(more, alike):
    """80 runs of five characters in the one, 99 or 101 in the other, which begins with all of the one."""
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 84 + more))
    rows = [{**UNSAFE[0], "prompt": str(size), "response": letters[:size]} for size in (84, 84 + more)]
    assert (("alike", "unsafe") in found(unsafe=[*UNSAFE, *rows])) == alike


@pytest.mark.parametrize(("kind", "rows"), [("safe", SAFE), ("benign", BENIGN)])
def test_rows_on_both_sides(kind, rows):
    checks = found(**{kind: [*rows, *UNSAFE[:2], *said(UNSAFE[2:3], lambda text, _: f"{text.upper()} ")]})
    assert checks["duplicates", f"unsafe and {kind}"].figure == 2
    check = checks["alike", f"unsafe and {kind}"]
    assert (check.severity, check.figure) == ("serious", 1) and "unsafe rows 2 " in check.sentence


@pytest.mark.parametrize(("count", "severity"), [(0, "serious"), (9, "serious"), (10, "warning"), (49, "warning")])
def test_too_few_rows(count, severity):
    checks = found(UNSAFE[:count], SAFE[:count])
    assert checks["number", "unsafe"].severity == checks["number", "safe"].severity == severity
    assert ("number", "unsafe") not in found(UNSAFE[:50], SAFE[:50])


def test_repeats_do_not_count_and_nor_do_answers_to_few_requests():
    checks = found(UNSAFE[:8] * 3, [{**row, "prompt": SAFE[place % 4]["prompt"]} for place, row in enumerate(SAFE)])
    assert checks["number", "unsafe"].figure == 8
    same = [[{**row, "prompt": rows[place % 4]["prompt"]} for place, row in enumerate(rows)] for rows in (UNSAFE, SAFE)]
    check = found(*same)["number", "unsafe requests"]
    assert (check.severity, check.figure) == ("serious", 4)
    assert found(UNSAFE[:9], SAFE)["number", "unsafe requests"].severity == "warning"


def test_safe_rows_that_refuse_nothing():
    assert found(safe=BENIGN)["refusals", "safe"].severity == "serious"
    assert found(safe=[*SAFE[:80], *BENIGN], benign=None)["refusals", "safe"].severity == "warning"


def test_no_ordinary_rows():
    for benign in (None, [], BENIGN[:9]):
        assert found(benign=benign)["ordinary rows", "benign"].severity == "warning"


def test_one_topic():
    one = [{**row, "category": "a" if place > 20 else "b"} for place, row in enumerate(UNSAFE)]
    assert found(unsafe=one)["topic", "unsafe"].figure == pytest.approx(199 / 220)
    words = [
        [{**row, "prompt": f"{row['prompt']} About harbours, I mean.", "category": "harm"} for row in rows]
        for rows in (UNSAFE, SAFE)
    ]
    assert found(*words)["topic", "unsafe"].figure == 1
    without = [[{**row, "category": "harm"} for row in rows] for rows in (UNSAFE, SAFE)]
    assert ("topic", "unsafe") not in found(*without)


def test_languages():
    english = [[row for row in rows if row["language"] == "en"] for rows in (UNSAFE, SAFE, BENIGN)]
    assert found(*english)["language", "all"].severity == "note"
    check = found(unsafe=UNSAFE, safe=[{**row, "language": "de"} for row in SAFE])["language", "all"]
    assert check.severity == "serious" and "safe" in check.sentence


@pytest.mark.parametrize("name", ["unsafe", "safe", "benign"])
def test_small_words_know_the_languages_of_the_starter_set(name):
    rows = starter_rows(name)
    guesses = [language_of(f"{row['prompt']}\n{row['response']}") for row in rows]
    right = [guess == row["language"] for guess, row in zip(guesses, rows, strict=True)]
    assert np.mean(right) > 0.95


def test_other_scripts_are_told_apart():
    assert language_of("Как испечь хлеб?") == "cyrillic" and language_of("如何烤面包") == "cjk"
    assert language_of("12 + 30 = 42") == language_of("Grmbl hrmpf") == "unknown"


def test_rows_that_cannot_be_read():
    bad = [*UNSAFE, {"prompt": "p", "response": ""}, {"prompt": "", "response": "r"}]
    check = found(unsafe=bad)["unread", "unsafe"]
    assert (check.severity, check.figure) == ("serious", 2) and "1 empty_prompt, 1 empty_response" in check.sentence
    pairs = [{"prompt": f"p{at}", "chosen": f"a {at}", "rejected": f"b {at}"} for at in range(12)]
    check = found(safe=pairs)["unread", "safe"]
    assert check.figure == 12 and "ignore" in check.fix
    with pytest.raises(DataError, match="no known shape"):
        audit_references([{"cheese": "brie"}], SAFE)


def test_columns_may_be_named():
    rows = [[{"q": row["prompt"], "a": row["response"]} for row in side] for side in (UNSAFE, SAFE)]
    audit = audit_references(*rows, columns={"prompt": "q", "response": "a"})
    assert audit.counts == {"unsafe": 220, "safe": 220} and not audit.serious


def test_no_text_of_the_rows_is_told():
    marked = [
        [{**row, "prompt": f"Xyzzy {row['prompt']}", "response": f"Plugh {row['response']}"} for row in rows]
        for rows in (UNSAFE[:30] * 2, [*SAFE[:30], *UNSAFE[:3]], BENIGN[:30])
    ]
    audit = audit_references(*marked)
    assert audit.serious
    text = json.dumps([audit.to_json(), audit.sentences(), audit.table()]).casefold()
    assert "xyzzy" not in text and "plugh" not in text


def test_references_that_were_built_have_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    index = ReferenceIndex.build(UNSAFE, SAFE, StandIn(), benign=BENIGN, license="mit", source="the tests")
    built, plain = audit_index(index), audit_references(UNSAFE, SAFE, BENIGN)
    assert built.counts == plain.counts and not built.serious

    def figures(audit):
        return {
            (check.check, check.rows): (check.figure, check.low, check.high)
            for check in audit.checks
            if check.check not in ("topic", "language") and not {"category", "categories"} & set(check.rows.split())
        }

    assert figures(built) == figures(plain)


def test_an_auroc_is_the_share_of_pairs_and_its_interval_is_that_of_hanley_and_mcneil():
    draw = np.random.default_rng(4)
    values = np.round(np.concatenate([draw.normal(0.8, 1, 90), draw.normal(0, 1, 110)]), 1)
    unsafe = np.repeat([True, False], [90, 110])
    high, low = values[unsafe], values[~unsafe]
    result = separation(values, unsafe, np.arange(200))
    assert result.auroc == pytest.approx(np.mean((high[:, None] > low) + 0.5 * (high[:, None] == low)))
    area = result.auroc
    terms = (90 - 1) * (area / (2 - area) - area**2) + (110 - 1) * (2 * area**2 / (1 + area) - area**2)
    error = np.sqrt((area * (1 - area) + terms) / (90 * 110))
    assert (result.high - result.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.2)
    wider = separation(values, unsafe, np.arange(200), level=0.999)
    assert wider.low < result.low < result.high < wider.high
    assert separation(np.zeros(200), unsafe, np.arange(200)).auroc == 0.5


def test_rows_of_one_request_are_drawn_together():
    """Ten copies of each row tell no more than the row: the interval must not shrink."""
    draw = np.random.default_rng(1)
    values, unsafe = draw.normal(size=60), np.arange(60) < 30
    once = separation(values + unsafe, unsafe, np.arange(60))
    tenfold = separation(np.tile(values + unsafe, 10), np.tile(unsafe, 10), np.tile(np.arange(60), 10))
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, rel=0.02)


def test_a_classifier_is_tried_on_requests_it_has_not_seen():
    """A feature of its own for each request, on both of its rows with one label, tells nothing about other requests."""
    draw = np.random.default_rng(2)
    requests = np.repeat(np.arange(80), 2)
    unsafe = np.repeat(draw.random(80) < 0.5, 2)
    own = np.eye(80)[requests]
    assert abs(separation(held_out(own, unsafe, requests), unsafe, requests).auroc - 0.5) < 0.2
    told = np.column_stack([own, unsafe])
    assert separation(held_out(told, unsafe, requests), unsafe, requests).auroc == 1


def test_the_same_request_has_one_number():
    assert numbered(["A b", "c", "a  B", "d"]).tolist() == [0, 1, 0, 2]
