"""Refusal margins, each by a second route: one sequence at a time, in float64, without a cache."""

from functools import wraps
from itertools import permutations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MambaConfig, MistralConfig

from hf_safefilter.effect import margin
from hf_safefilter.effect.margin import COMPLIANCES, REFUSALS, begun_answers, refusal_margins
from hf_safefilter.errors import DataError
from hf_safefilter.model.tokens import tokenise_prompts
from hf_safefilter.toy.corpus import heldout_prompts


def by_hand(model, begun) -> list[float]:
    """The margins of `begun` by their definition."""
    margins = []
    for rows in begun:
        chances = []
        for row in rows:
            span = row.spans[-1]
            ids = torch.tensor(row.ids[: span.content_stop].astype("int64"))[None]
            with torch.no_grad():
                log_chances = model.double().eval()(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            each = [log_chances[at - 1, ids[0, at]].item() for at in range(span.start, span.content_stop)]
            chances.append(np.exp(sum(each)))
        refusing, complying = chances[: len(REFUSALS)], chances[len(REFUSALS) :]
        margins.append(float(np.log(np.mean(refusing)) - np.log(np.mean(complying))))
    model.float()
    return margins


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [*heldout_prompts("harmful", 4), *heldout_prompts("benign", 4)]


@pytest.fixture
def begun(tokenizer, prompts):
    return begun_answers(tokenizer, prompts)


def test_margins_are_those_of_one_sequence_at_a_time(model, begun):
    margins = refusal_margins(model.train(), begun)
    assert margins.dtype == np.float64
    assert margins == pytest.approx(by_hand(model, begun), abs=1e-4)
    model.train()
    assert refusal_margins(model, begun[::-1])[::-1] == pytest.approx(margins, abs=1e-4)
    assert model.training  # the mode of before comes back


def test_harmful_prompts_are_refused_by_a_margin_and_benign_ones_are_not(model, begun):
    margins = refusal_margins(model, begun)
    assert margins[:4].min() > 2
    assert margins[4:].max() < 0


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, num_key_value_heads=1),
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4),  # shorter than a prompt
        GPTNeoXConfig(**SMALL),
        GPT2Config(n_embd=32, n_layer=2, n_head=2),
        MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8),  # keeps a state: nothing is shared
    ],
    ids=lambda config: config.model_type,
)
def test_models_of_all_kinds_give_the_same_margins_with_and_without_a_cache(config, tokenizer, begun):
    config.vocab_size = len(tokenizer)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 8  # so that what stands before matters
    assert refusal_margins(model, begun[:3]) == pytest.approx(by_hand(model, begun[:3]), abs=1e-3)


def test_an_adapted_model_is_measured_with_its_adapters(model, begun):
    from peft import LoraConfig, get_peft_model

    plain = refusal_margins(model, begun[:2])
    torch.manual_seed(0)
    options = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(model, options)
    margins = refusal_margins(adapted, begun[:2])
    assert np.abs(margins - plain).min() > 0.1
    assert margins == pytest.approx(by_hand(adapted, begun[:2]), abs=1e-3)


def test_what_prompts_and_answers_have_in_common_is_computed_once(model, begun, monkeypatch):
    seen = []
    forward = model.forward

    @wraps(forward)
    def counted(**given):
        seen.append(tuple(given["input_ids"].shape))
        return forward(**given)

    monkeypatch.setattr(model, "forward", counted)
    refusal_margins(model, begun[:1])
    header = begun[0][0].spans[-1].start - 1
    read = {tuple(row.ids[header : row.spans[-1].content_stop - 1].tolist()) for row in begun[0]}
    ends = [one for one in read if not any(one == other[: len(one)] for other in read - {one})]
    assert seen == [(1, header), (len(ends), max(map(len, ends)))]
    assert len(ends) < len(begun[0])


def test_answers_begin_where_the_model_is_asked_to_answer(tokenizer, prompts, begun):
    """After the very tokens that it is given when it replies, and no end of the turn is asked for."""
    for asked, rows in zip(tokenise_prompts(tokenizer, prompts), begun, strict=True):
        for row, words in zip(rows, (*REFUSALS, *COMPLIANCES), strict=True):
            start, stop = row.spans[-1].start, row.spans[-1].content_stop
            assert row.ids[:start].tolist() == asked.tolist()
            assert tokenizer.decode(row.ids[start:stop]).strip() == words


def test_no_beginning_is_the_beginning_of_another():
    assert len(REFUSALS) == len(COMPLIANCES)
    assert not [pair for pair in permutations((*REFUSALS, *COMPLIANCES), 2) if pair[0].startswith(pair[1])]


def test_the_record_knows_the_beginnings(monkeypatch):
    before = margin.record()
    assert before["refusals"] == list(REFUSALS)
    monkeypatch.setattr(margin, "COMPLIANCES", (*COMPLIANCES[:-1], "2."))
    assert margin.record()["digest"] != before["digest"]


def test_prompts_that_cannot_be_asked_are_named(model, tokenizer):
    template = "{% if 'bake' in messages[0].content %}{{ raise_exception('no') }}{% endif %}"
    template += "{% for said in messages %}{{ said.content }}\n{% endfor %}"
    with pytest.raises(DataError, match="prompt 1 cannot be put") as caught:
        begun_answers(tokenizer, ["How do I tie a tie?", "How do I bake bread?"], chat_template=template)
    assert caught.value.found == "template_refused"
    with pytest.raises(DataError, match="leaves no room"):
        refusal_margins(model, begun_answers(tokenizer, ["word " * 3000]))
