"""The risk of each token against a loop in float64, in which each adapter is added to the weights of its own model."""

import numpy as np
import pytest
import torch
from small_models import small_tokenizer
from transformers import AutoModelForCausalLM

from hf_safefilter.cache import SCORE
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.model.reading_options import WINDOW
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.token_risk import TokenRiskScore, fit_token_risk
from hf_safefilter.scores.token_risk import label_losses as losses

TURNS = [
    [("user", "Say one thing."), ("assistant", "A thing.")],
    [
        ("user", "Bake bread."),
        ("assistant", "Mix flour, water, salt and yeast; knead, rest and bake until golden, twice."),
    ],
    [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "More"),
        ("assistant", "No " * 30 + "."),
    ],
    [("user", "How do I pick lock 3?"), ("assistant", "Sure. Bend the wire 3 times.")],
]
ROWS = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in TURNS]


def as_ids(row) -> tuple[list[int], list[list[int]]]:
    """The ids of a row, and the places of the tokens of each answer with the token that ends it."""
    tokenizer, ids, answers = small_tokenizer(), [1], []

    def encoded(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for role, text in row:
        ids += encoded(f"<|{role}|>")
        start = len(ids)
        ids += encoded(f"{text}<|end|>")
        if role == "assistant":
            answers.append(list(range(start, len(ids))))
    return ids, answers


def merged(base, adapters, name) -> torch.nn.Module:
    """The base with B @ A added to each weight, in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    tensors = {path: one.double() for path, one in adapters.tensors(name).items()}
    for path in [path for path in tensors if ".lora_A." in path]:
        weight = model.get_parameter(path.removeprefix("base_model.model.").replace(".lora_A", ""))
        with torch.no_grad():
            weight += tensors[path.replace(".lora_A.", ".lora_B.")] @ tensors[path]
    return model


@pytest.fixture(scope="module")
def expected(base, adapters) -> list[dict[int, float]]:
    """Place -> risk, for each row."""
    models = [merged(base, adapters, name) for name in ("utility", "degraded")]
    found = []
    for row in TURNS:
        ids, answers = as_ids(row)
        found.append({})
        for place in sum(answers, []):
            with torch.no_grad():
                logits = [model(torch.tensor([ids[:place]])).logits[0, -1] for model in models]
            useful, degraded = (-float(one[ids[place]] - torch.logsumexp(one, 0)) for one in logits)
            found[-1][place] = useful - degraded
    return found


def by_hand(answers, risks, width) -> list[tuple[int, int, float]]:
    """Start, stop and mean risk of every window of a row."""
    windows = []
    for answer in answers:
        start, stop = answer[0], answer[-1] + 1
        starts = [start]
        if width is not None and stop - start > width:
            starts = list(range(start, stop - width, max(1, width * 5 // 6))) + [stop - width]
        ends = [stop if width is None else min(one + width, stop) for one in starts]
        windows += [
            (a, b, float(np.mean([risks[place] for place in range(a, b)]))) for a, b in zip(starts, ends, strict=True)
        ]
    return windows


def test_every_token_has_its_risk(adapters, expected):
    risks = TokenRiskScore(adapters, device="cpu").risks(as_conversations(ROWS))
    for row, wanted in enumerate(expected):
        own = slice(risks.offsets[row], risks.offsets[row + 1])
        assert risks.spans["start"][own].tolist() == list(wanted)
        np.testing.assert_allclose(risks.vectors[SCORE][own, 0], list(wanted.values()), rtol=1e-3, atol=1e-4)
    values = np.concatenate([list(one.values()) for one in expected])
    assert values.std() > 0.1, "adapters that are alike would prove nothing"


@pytest.mark.parametrize("width", [5, WINDOW, None])
def test_the_score_is_that_of_the_riskiest_window(adapters, expected, width):
    found = TokenRiskScore(adapters, window=width, device="cpu")({"messages": [row["messages"] for row in ROWS]})
    for row, risks in enumerate(expected):
        windows = by_hand(as_ids(TURNS[row])[1], risks, width)
        np.testing.assert_allclose(
            found["token_risk_span_scores"][row], [mean for *_, mean in windows], rtol=1e-3, atol=1e-4
        )
        top = max(mean for *_, mean in windows)
        np.testing.assert_allclose(found["token_risk_score"][row], top, rtol=1e-3, atol=1e-4)
        place = found["token_risk_start"][row], found["token_risk_stop"][row]
        assert place in [(start, stop) for start, stop, mean in windows if mean > top - 1e-3]


def test_batches_and_padding_do_not_matter(adapters, expected, monkeypatch):
    step, rows = TokenRiskScore(adapters, device="cpu"), as_conversations(ROWS)
    together = step.risks(rows)
    monkeypatch.setitem(losses._TOKENS, "cpu", 1)
    np.testing.assert_allclose(step.risks(rows).vectors[SCORE], together.vectors[SCORE], rtol=1e-4, atol=1e-5)


def test_a_row_that_begins_with_what_is_learned_is_scored_from_its_second_token():
    embed = EmbedLayers("toy", [1], chat_template="raw", device="cpu")
    texts = [{"text": "Sure, this is easy."}], [{"text": "Sorry, that is wrong."}]
    index = ReferenceIndex.build(*texts, embed, license="mit", source="these tests")
    adapters = fit_token_risk(index, steps=3, learning_rate=1e-2, device="cpu")
    step = TokenRiskScore(adapters, window=None, device="cpu")
    risks = step.risks(as_conversations(texts[0]))
    assert risks.spans["start"].tolist() == list(range(len(risks.spans))) and risks.vectors[SCORE][0, 0] == 0
    found = step({"text": ["Sure, this is easy."]})
    np.testing.assert_allclose(found["token_risk_score"][0], risks.vectors[SCORE][1:, 0].mean(), rtol=1e-5)
    assert found["token_risk_start"][0] == 0 and risks.vectors[SCORE][1:, 0].all()
    single = TokenRiskScore(adapters, window=1, device="cpu")({"text": ["Sure, this is easy."]})
    assert len(single["token_risk_span_scores"][0]) == len(risks.spans) - 1
