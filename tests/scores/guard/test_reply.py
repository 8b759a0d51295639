"""The verdict in a reply: from log-probabilities as servers spell tokens, or from words."""

import json
import math

import pytest
from pydantic import ValidationError

from hf_safefilter.scores.guard.presets import PRESETS
from hf_safefilter.scores.guard.reply import Labels, Reply

LLAMA = Labels(("unsafe",), ("safe",), "\n\n")
QWEN = Labels(("Unsafe", "Controversial"), ("Safe",), "Safety: ")


def labels(preset):
    form = PRESETS[preset]
    return Labels(form.unsafe, form.safe, form.leads[-1])


def reply(content, *tokens):
    """Tokens are (text, {alternative: probability}); the text's own probability is among them."""
    listed = [
        {
            "token": text,
            "logprob": math.log(chances[text]),
            "top_logprobs": [{"token": other, "logprob": math.log(chance)} for other, chance in chances.items()],
        }
        for text, chances in tokens
    ]
    choice = {"message": {"content": content}, "logprobs": {"content": listed} if listed else None}
    return Reply.model_validate_json(json.dumps({"choices": [choice]}))


def certain(*texts):
    return [(text, {text: 1.0}) for text in texts]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n\nunsafe\nS1,S9", 1.0),
        ("safe", 0.0),
        ("**Unsafe**.", 1.0),
        ("<think>It looks safe. No: unsafe</think>\n\nsafe", 0.0),
        ("safety first", None),
        ("The last turn is safe", None),
        ("unsafely", None),
        ("<think>safe", None),
        ("", None),
        (None, None),
    ],
)
def test_words_first_in_the_answer(content, expected):
    assert LLAMA.by_words(reply(content)) == expected


@pytest.mark.parametrize(
    ("preset", "content", "expected"),
    [
        ("llama_guard_4", "\n\nsafe", 0.0),
        ("shieldgemma", "Yes", 1.0),
        ("shieldgemma", "No.", 0.0),
        ("shieldgemma", "No\n\nThe answer is polite.", 0.0),
        ("shieldgemma", "No, I cannot judge this request.", None),
        ("shieldgemma", "Yes, it does", 1.0),
        ("llama_guard_4", "Safe or unsafe? I cannot tell.", None),
        ("llama_guard_4", "safe/unsafe", None),
        ("llama_guard_4", "Safe-sounding, but it violates the policy: unsafe", None),
        ("wildguard", "Harmful response: no, it says, yet\nHarmful response: yes", None),
        ("wildguard", "Harmful request: yes\nResponse refusal: yes\nHarmful response: no", 0.0),
        ("wildguard", "Harmful request: no\nResponse refusal: no\nHarmful response: yes", 1.0),
        ("wildguard", "Harmful request: yes\nResponse refusal: yes", None),
        ("qwen3guard", "Safety: Safe\nCategories: None\nRefusal: Yes", 0.0),
        ("qwen3guard", "Safety: Controversial\nCategories: Violent", 1.0),
        ("qwen3guard", "Safe\nCategories: None", 0.0),
        ("qwen3guard", "Categories: Safe", None),
        ("granite_guardian", "Yes\n<confidence> High </confidence>", 1.0),
        ("granite_guardian_3_3", "<think>\n</think>\n<score> no </score>", 0.0),
        ("granite_guardian_3_3", "<score> yes </score>", 1.0),
        ("policy", "unsafe", 1.0),
    ],
)
def test_the_answers_of_each_family(preset, content, expected):
    assert labels(preset).by_words(reply(content)) == expected


def test_the_first_token_of_the_verdict():
    found = reply(
        "\n\nunsafe\nS1", *certain("\n\n"), ("unsafe", {"unsafe": 0.6, "safe": 0.2, "S": 0.1}), *certain("\n")
    )
    assert LLAMA.by_logprobs(found) == pytest.approx(0.75)


def test_the_space_may_stand_in_the_token_or_be_gone():
    for lead, space in ((["Safety", ":"], " "), (["Safety", ":"], ""), (["Safety", ": "], ""), (["Safety: "], "")):
        chances = {f"{space}Safe": 0.5, f"{space}Unsafe": 0.3, f"{space}Controversial": 0.1, "\n": 0.1}
        found = reply("Safety: Safe\nCategories: None", *certain(*lead), (f"{space}Safe", chances), *certain("\n"))
        assert QWEN.by_logprobs(found) == pytest.approx(4 / 9), (lead, space)


def test_a_token_that_holds_the_end_of_what_stands_before():
    chances = {": Safe": 0.5, ": Unsafe": 0.25, "Unsafe": 0.25}
    assert QWEN.by_logprobs(reply("Safety: Safe", *certain("Safety"), (": Safe", chances))) == pytest.approx(1 / 3)


def test_words_of_several_tokens_count_by_what_tells_them_apart():
    found = reply("unsafe", ("un", {"un": 0.7, "safe": 0.2, "s": 0.1}), *certain("safe"))
    assert LLAMA.by_logprobs(found) == pytest.approx(7 / 9), "the likeliest beginning of a word counts, and once"
    both = Labels(("D1",), ("D0",), "")
    assert both.by_logprobs(reply("D0", *certain("D"), ("0", {"0": 0.9, "1": 0.1}))) == pytest.approx(0.1)
    twice = Labels(("VIOLENT", "VIOLATING"), ("FINE",), "")
    found = reply("VIOLENT", ("VIOL", {"VIOL": 0.6, "F": 0.2}), *certain("ENT"))
    assert twice.by_logprobs(found) == pytest.approx(0.75), "a token that begins two words of one side counts once"


def test_the_label_after_reasoning():
    said = certain("<think>", "unsafe", "?", "</think>", "\n")
    found = reply("safe", *said, ("safe", {"safe": 0.8, "unsafe": 0.2}), *certain("<|end|>"))
    assert LLAMA.by_logprobs(found) == pytest.approx(0.2)


def test_a_letter_that_is_spread_over_tokens_after_the_verdict():
    found = reply("safe\n\u2028é", ("safe", {"safe": 0.9, "unsafe": 0.1}), *certain("\n \ufffd", "\ufffd"))
    assert LLAMA.by_logprobs(found) == pytest.approx(0.1)


def test_a_word_that_is_not_listed_counts_as_zero():
    assert LLAMA.by_logprobs(reply("safe", ("safe", {"safe": 0.9, "Safe": 0.05}))) == 0.0
    assert LLAMA.by_logprobs(reply("unsafe", ("unsafe", {"unsafe": 0.9, "Unsafe": 0.05}))) == 1.0


def test_a_token_without_alternatives_is_sure_of_nothing():
    """It would be 0 or 1, whatever the model thinks."""
    assert LLAMA.by_logprobs(reply("safe", ("safe", {"safe": 0.5}))) is None


def test_no_log_probabilities_no_probability():
    assert LLAMA.by_logprobs(reply("safe")) is None
    assert LLAMA.by_logprobs(reply("maybe", *certain("maybe"))) is None
    assert LLAMA.by_logprobs(reply("safe", *certain("something", "else"))) is None
    odd = json.dumps({"choices": [{"message": {"content": "safe"}, "logprobs": {"content": [
        {"token": "safe", "logprob": float("nan")}]}}]})  # fmt: skip
    assert LLAMA.by_logprobs(Reply.model_validate_json(odd)) is None
    glued = reply("safe\nx", ("safe\nx", {"safe\nx": 0.9, "unsafe": 0.1}))
    assert LLAMA.by_logprobs(glued) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}', "[" * 100_000,
     '{"choices": [{"message": {"content": "safe"}}], "usage": {"prompt_tokens": -5}}'],
)  # fmt: skip
def test_what_is_no_reply(body):
    with pytest.raises(ValidationError):
        Reply.model_validate_json(body)
