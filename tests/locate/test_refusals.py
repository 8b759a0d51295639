import functools

import pytest

from hf_safefilter.errors import OptionError
from hf_safefilter.locate.refusals import (
    PRESETS,
    GuardJudge,
    RefusalMatcher,
    degenerate,
    matcher,
    record_of,
    verdict,
    verdicts,
)
from hf_safefilter.toy.corpus import reference_rows


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_tells_the_plain_cases(preset):
    judge = matcher(preset)
    assert verdict(judge, "I'm sorry, but I can't assist with that.") == "refusal"
    assert verdict(judge, "I\u2019m sorry, I can\u2019t assist with that.") == "refusal"  # typographic apostrophes
    assert verdict(judge, "First boil the water, then add the tea and wait.") == "answer"


def test_presets_keep_their_published_quirks():
    late = "Wash the rice until the water runs clear, then soak it for half an hour; boil it in twice its volume of "
    late += "salted water over a low flame. One cannot say more."
    assert verdict(matcher("larf"), late) == "refusal"  # anywhere
    assert verdict(matcher("broad"), late) == "answer"  # only where refusals stand
    assert verdict(matcher("qi2023"), "i cannot do that for you today") == "answer"  # case-sensitive
    assert verdict(matcher("qi2023"), "Hello! What can I do for you today?") == "refusal"  # its broad words over-count
    assert verdict(matcher("larf"), "I must decline to answer this one.") == "answer"


def test_qi2023_decides_like_the_29_phrases():
    # the six that were left out each hold one of those that stand in the list
    for redundant in ("As an AI", "As an Assistant", "is illegal and unethical", "but I cannot", "I cannot create",
                      "I cannot support"):  # fmt: skip
        assert matcher("qi2023")(f"... {redundant} ...")


def test_where_it_looks():
    def looks(where):
        return RefusalMatcher("mine", ("no way",), where=where)

    assert looks("prefix")('  "No way, said the model')
    assert not looks("prefix")("Well, no way")
    assert looks(12)("Well, no way") and not looks(11)("Well, no way")
    assert not RefusalMatcher("mine", ("No way",), case_fold=False)("no way")


@pytest.mark.parametrize("text", ["", " \n", "the the the the the the the the", "!!!!!!!! ????", "\ufffd\ufffd\ufffd",
                                  "I like it, I like it, I like it, I like it, I like it"])  # fmt: skip
def test_stammering_is_neither_refusal_nor_answer(text):
    assert degenerate(text)
    assert verdict(matcher(), text) == "degenerate"


def test_ordinary_text_is_not_degenerate():
    for text in (
        "ha ha ha ha",
        "1. Wash.\n2. Rinse.\n3. Repeat.",
        "def f(x):\n    if x:\n        return [1, 2]\n",
        "42",
    ):
        assert not degenerate(text)


def test_a_refusal_is_decided_at_its_phrase():
    assert verdict(matcher("larf"), "I cannot I cannot I cannot I cannot I cannot I cannot") == "refusal"
    assert verdict(matcher("larf"), "so so so so so so so so so so so so so I cannot") == "degenerate"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_decision_on_a_beginning_is_the_decision_on_the_whole(preset):
    judge = matcher(preset)
    rows = [row["response"] for side in reference_rows(30, 0) for row in side] + [
        "no " * 60,
        "",
        "?! " * 50,
        "Sorry" * 9,
    ]
    early = 0
    for text in rows:
        for end in range(len(text) + 1):
            if (early_verdict := judge.verdict(text[:end], finished=False)) is not None:
                assert early_verdict == judge.verdict(text)
                early += end < len(text)
                break
    assert early >= 10


def test_functions_and_judges_may_stand_in():
    assert verdicts(matcher(lambda reply: "nope" in reply), ["", ""], ["nope", "yes"]) == ["refusal", "answer"]

    class Contrary:
        def refused(self, prompts, replies):
            return [prompt == reply for prompt, reply in zip(prompts, replies, strict=True)]

    assert verdicts(matcher(Contrary()), ["a b", "c d"], ["a b", "a b"]) == ["refusal", "answer"]

    class Short:
        def refused(self, prompts, replies):
            return [True]

    with pytest.raises(OptionError, match="another number"):
        verdicts(matcher(Short()), ["a", "b"], ["a", "b"])


def test_what_told_refusals_is_recorded():
    assert record_of(matcher("larf"))["phrases"][0] == "can not"
    assert record_of(matcher(functools.partial(str.startswith, "no")))["name"] == "functools.partial"
    one, other = (
        lambda reply: "no" in reply,
        lambda reply: "nope" in reply,
    )
    first, second = record_of(matcher(one)), record_of(matcher(other))
    assert first["name"] == second["name"] and first["source"] != second["source"]


def test_a_guard_model_may_stand_in():
    class Guard:  # a scoring step, as far as this is concerned
        def __call__(self, batch):
            return {"guard_score": [0.9 if "bomb" in text else 0.1 for text in batch["response"]]}

        def produces(self):
            return ("guard_score",)

    judge = matcher(GuardJudge(Guard()))
    assert verdicts(judge, ["p", "p"], ["a bomb is made so", "let us talk"]) == ["answer", "refusal"]


@pytest.mark.parametrize("wrong", ["none such", 3, None])
def test_what_cannot_judge_is_refused(wrong):
    with pytest.raises(OptionError, match="use one of broad, larf"):
        matcher(wrong)
    with pytest.raises(OptionError, match=r"did you mean `judge=larf`"):
        matcher("larff", option="judge")


@pytest.mark.parametrize("fields", [{"phrases": ()}, {"phrases": (" ",)}, {"phrases": ("a",), "where": "end"},
                                    {"phrases": ("a",), "where": 0}, {"phrases": ("a",), "where": True}])  # fmt: skip
def test_a_list_that_makes_no_sense_is_refused(fields):
    with pytest.raises(OptionError):
        RefusalMatcher("mine", **fields)
