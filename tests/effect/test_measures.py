"""Refusal rates and losses, each by a second route."""

import json

import numpy as np
import pytest
import torch

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.effect.material import tokens_of
from hf_safefilter.effect.measures import Measurements, Replies, mean_loss, replies_to
from hf_safefilter.locate.refusals import matcher
from hf_safefilter.toy.corpus import heldout_prompts
from hf_safefilter.toy.refusal_rates import replies as toy_replies
from hf_safefilter.toy.wording import is_refusal


@pytest.mark.parametrize("kind", ["harmful", "borderline"])
def test_refusal_rates_are_those_of_another_generator_and_another_matcher(model, tokenizer, kind):
    prompts = heldout_prompts(kind, 40)
    ours = replies_to(model, tokenizer, prompts, matcher("broad"), max_new_tokens=16)
    theirs = sum(map(is_refusal, toy_replies(model, tokenizer, prompts)))
    assert ours.refused == theirs
    assert ours.asked == 40
    assert (ours.refusal > 0.9) == (kind == "harmful")


def test_shares_of_replies_add_up():
    replies = Replies(refused=6, answered=3, degenerate=1)
    assert (replies.refusal, replies.answer, replies.stammer, replies.asked) == (0.6, 0.3, 0.1, 10)
    measured = Measurements(replies, Replies(1, 1, 0), 0.25, (6.5, -1.0))
    assert measured.margin == 2.75
    assert Measurements.from_json(json.loads(json.dumps(measured.to_json()))) == measured


def test_a_model_tuned_to_pieces_neither_refuses_nor_answers(model, tokenizer):
    """What it stammers must not look like safety, nor like an attack that worked."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    replies = replies_to(model, tokenizer, heldout_prompts("harmful", 8), matcher("broad"), max_new_tokens=16)
    assert (replies.refused, replies.answered, replies.degenerate) == (0, 0, 8)


@pytest.mark.parametrize("answers", [1, 2])
def test_loss_is_the_mean_over_the_tokens_of_all_answers(model, material, dialogues, said, answers):
    rows = material.tokens[:9] if answers == 1 else dialogues[:9]
    total, count = 0.0, 0
    double = model.double()
    for row in rows:
        ids = torch.tensor(row.ids.astype("int64"))[None]
        with torch.no_grad():
            chances = double(input_ids=ids).logits[0].log_softmax(-1)
        for position in np.flatnonzero(said(row.ids)):
            total -= chances[position - 1, ids[0, position]].item()
            count += 1
    loss = mean_loss(model.float().train(), rows)
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert model.training  # the mode of before comes back
    assert loss == pytest.approx(mean_loss(model, rows[::-1]), rel=1e-6)


def test_answers_that_are_not_trained_on_are_not_in_the_loss(model, key):
    """The same conversation in which each answer is left out in turn: their losses make up that of both."""
    turns = [("user", "How are you?"), ("assistant", "Well."), ("user", "Why?"), ("assistant", "I sleep a lot.")]

    def loss(*weights):
        rest = iter(weights)
        messages = [{"role": role, "content": text} | ({"weight": next(rest)} if role == "assistant" else {})
                    for role, text in turns]  # fmt: skip
        columns = {"ignore": "trailing_turn"}  # an answer at the end that is not trained on would be text unread
        (row,) = tokens_of(as_conversations([{"messages": messages}], columns), key, None, None)
        return mean_loss(model, [row]), int(row.labelled().sum())

    (both, count), (first, one), (second, other) = loss(1, 1), loss(1, 0), loss(0, 1)
    assert (one > 0, other > 0, count) == (True, True, one + other)
    assert both == pytest.approx((first * one + second * other) / count, rel=1e-5)
    assert first != pytest.approx(second, rel=1e-2)
