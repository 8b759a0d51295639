"""What of a row a guard gets to read: each answer with the turns before it, and of an answer all that is said."""

import numpy as np
import pytest
from guards import by_hand, save_classifier, save_guard
from transformers import AutoTokenizer

from hf_safefilter import cache
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.scores.guard import PRESETS, GuardScore
from hf_safefilter.scores.guard.shown import shown

WORDS = ["unsafe", "safe"]
USER, ANSWER = "user", "assistant"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_guard(tmp_path_factory.mktemp("guards") / "guard", "llama_guard_3")


def talk(*texts, **more):
    """A row of turns of a user and an assistant; the last turn has `more` keys."""
    turns = [{"role": (USER, ANSWER)[place % 2], "content": text} for place, text in enumerate(texts)]
    turns[-1] |= more
    return {"messages": turns}


def judged(folder, turns):
    """P(unsafe) of the last turn, by transformers' own rendering."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return by_hand(folder, text + "\n\n", WORDS)[0]


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def scores_of(folder, *rows, **options):
    return GuardScore(folder, device="cpu", **options)({"messages": [row["messages"] for row in rows]})


def test_each_answer_is_judged_and_the_most_unsafe_one_is_named(folder):
    questions = ["Is it raining?", "Who is the hero?", "Where is she?", "And then?"]
    answers = ["It is.", "Zelda rides.", "In the kingdom, where it rains.", "She follows him home."]
    for shift in range(4):  # whichever answer it is, it must not always be the first or the last
        turns = answers[shift:] + answers[:shift]
        row = talk(*(text for pair in zip(questions, turns, strict=True) for text in pair))
        each = [judged(folder, row["messages"][: turn + 1]) for turn in (1, 3, 5, 7)]
        found = scores_of(folder, row)
        assert found["guard_score"][0] == pytest.approx(max(each), abs=1e-5)
        assert found["guard_turn"].tolist() == [[1, 3, 5, 7][int(np.argmax(each))]]
        assert found["guard_turn"].dtype == np.int32


def test_what_is_said_later_never_makes_an_answer_safer(folder):
    answers = ["She rides.", "It rains.", "Link.", "The hero of the kingdom follows her home through the rain."]
    first = scores_of(folder, *(talk("Ask", one) for one in answers))["guard_score"]
    longer = scores_of(folder, *(talk("Ask", one, "Ask", "Zelda.", "Ask", "No.") for one in answers))["guard_score"]
    assert (longer >= first - 1e-6).all()


def test_turns_that_nobody_trains_on_are_read_but_not_judged(folder):
    row = talk("Is it raining?", "It is.", "Who is the hero?", "Zelda.")
    row["messages"][1]["weight"] = 0
    found = scores_of(folder, row)
    plain = talk("Is it raining?", "It is.", "Who is the hero?", "Zelda.")["messages"]
    assert found["guard_score"][0] == pytest.approx(judged(folder, plain), abs=1e-5)
    assert found["guard_turn"].tolist() == [3]


def test_an_answer_that_is_too_long_leaves_the_whole_row_unjudged(folder):
    rows = [talk("Ask", "No.", "Go on", "on " * 400), talk("Ask", "No.", "Go on", "on")]
    found = scores_of(folder, *rows, max_length=300)
    assert found["guard_unscored"].tolist() == ["too_long", ""]
    assert np.isnan(found["guard_score"]).tolist() == [True, False]
    assert found["guard_turn"][0] == -1 and found["guard_turn"][1] in (1, 3)


def test_rows_without_a_score_name_no_turn(folder):
    found = scores_of(folder, talk("Ask", ""), talk("Ask", "It rains."))
    assert found["guard_turn"].tolist() == [-1, 1] and found["guard_unscored"].tolist() == ["empty_response", ""]


def test_tool_calls_and_reasoning_are_shown_to_the_guard(folder):
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"city": "Paris at night"}}}
    rows = [
        talk("Is it raining?", "It is."),
        talk("Is it raining?", "It is.", reasoning_content="They want to go out."),
        talk("Is it raining?", None, tool_calls=[call]),
    ]
    (plain,), (thought,), (called,) = map(shown, as_conversations(rows))
    assert plain[1].messages[-1].content == "It is."
    assert thought[1].messages[-1].content == "It is.\nThey want to go out."
    assert {"lookup", "Paris at night"} <= set(called[1].messages[-1].content.splitlines())
    found = scores_of(folder, *rows)
    for score, (_, row) in zip(found["guard_score"], (plain, thought, called), strict=True):
        turns = [one.to_dict() for one in row.messages]
        assert score == pytest.approx(judged(folder, turns), abs=1e-5)
    assert len({round(float(score), 6) for score in found["guard_score"]}) == 3


def test_what_a_tool_says_is_shown_as_the_users(folder):
    row = talk("Is it raining?", "I shall look.")
    row["messages"] += said(("tool", "Rain in the kingdom."), (ANSWER, "It is."))
    found = scores_of(folder, row)
    as_user = said(
        (USER, "Is it raining?"), (ANSWER, "I shall look."), (USER, "Rain in the kingdom."), (ANSWER, "It is.")
    )
    each = [judged(folder, as_user[:2]), judged(folder, as_user)]
    assert found["guard_score"][0] == pytest.approx(max(each), abs=1e-5)
    assert found["guard_turn"].tolist() == [[1, 3][int(np.argmax(each))]]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_turn_is_not_shown_and_turns_keep_their_numbers(folder, role):
    turns = said((role, "Be kind."), (USER, "Is it raining?"), (ANSWER, "It is."))
    ((turn, seen),) = shown(as_conversations([{"messages": turns}])[0])
    assert (turn, [one.role for one in seen.messages]) == (2, [USER, ANSWER])
    found = scores_of(folder, {"messages": turns})
    assert found["guard_score"][0] == pytest.approx(judged(folder, turns[1:]), abs=1e-5)
    assert found["guard_turn"].tolist() == [2]


def test_answers_one_after_the_other_are_shown_as_one_turn(folder):
    turns = said((USER, "Is it raining?"), (ANSWER, "It is."), (ANSWER, "I think."))
    pieces = [[one.content for one in seen.messages] for _, seen in shown(as_conversations([{"messages": turns}])[0])]
    assert pieces == [["Is it raining?", "It is."], ["Is it raining?", "It is.\nI think."]]


def test_a_guard_that_leaves_out_earlier_turns_still_judges_every_answer(tmp_path):
    folder = save_guard(tmp_path / "guard", "wildguard")  # it reads the last question and the last answer
    step = GuardScore(folder, "wildguard", device="cpu")
    assert "messages[-1]" in PRESETS["wildguard"].template
    whole = talk("Is it raining?", "It is.", "Who is the hero?", "Zelda.")
    halves = [{"messages": whole["messages"][:2]}, {"messages": whole["messages"][2:]}]
    alone = step({"messages": [half["messages"] for half in halves]})["guard_score"]
    found = step({"messages": [whole["messages"]]})
    assert found["guard_unscored"].tolist() == [""]
    assert found["guard_score"][0] == pytest.approx(max(alone), abs=1e-5)
    assert found["guard_turn"].tolist() == [[1, 3][int(np.argmax(alone))]]


def test_a_classifier_judges_every_answer_too(tmp_path):
    folder = save_classifier(tmp_path / "guard")
    step = GuardScore(folder, device="cpu")
    row = talk("Is it raining?", "It is.", "Who is the hero?", "Zelda.")
    texts = ["Is it raining?\nIt is.", "Is it raining?\nIt is.\nWho is the hero?\nZelda."]
    alone = step({"text": texts})["guard_score"]  # plain text is one turn
    found = step({"messages": [row["messages"]]})
    assert found["guard_score"][0] == pytest.approx(max(alone), abs=1e-5)
    assert found["guard_turn"].tolist() == [[1, 3][int(np.argmax(alone))]]


def test_the_cache_gives_the_same_turns(folder, monkeypatch, tmp_path):
    rows = [talk("Ask", "It rains.", "Ask", "Zelda."), talk("Ask", ""), talk("Ask", "Link.", "Ask", "She rides.")]
    rows += rows[:1]
    expected = scores_of(folder, *rows)
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path))
    monkeypatch.setenv(cache.SWITCH, "on")
    for _ in range(2):
        found = scores_of(folder, *rows)
        np.testing.assert_allclose(found["guard_score"], expected["guard_score"], atol=1e-6)
        assert found["guard_turn"].tolist() == expected["guard_turn"].tolist()
        assert found["guard_unscored"].tolist() == expected["guard_unscored"].tolist()
