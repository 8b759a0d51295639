"""Risky tokens leave the loss one by one, or with the windows that `EmbedLayers` has read; risks are kept."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scores.token_risk.conftest import BENIGN, SAFE, UNSAFE

from hf_safefilter import cache
from hf_safefilter.cache import SWITCH
from hf_safefilter.cache import store as stores
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.decide.mask_tokens import MaskTokens
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.scores.token_risk import MaskRiskyTokens, RiskAdapters, TokenRiskScore, risk_threshold

LONG = {"prompt": "Tell me of bread.", "response": "Mix flour, water, salt and yeast. " * 3 + "Bend the wire 5 times."}
ROWS = [*BENIGN, *UNSAFE[:3], *SAFE[:2], LONG, {"prompt": "Half", "response": ""}]


@pytest.fixture(scope="module")
def step(adapters):
    return TokenRiskScore(adapters, device="cpu")


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_list(ROWS)


def all_risks(step) -> list[dict[int, float]]:
    """Place -> risk, for each row."""
    found = step.risks(as_conversations(ROWS))
    parts = [slice(a, b) for a, b in zip(found.offsets, found.offsets[1:], strict=False)]
    return [
        dict(zip(found.spans["start"][one].tolist(), found.vectors[cache.SCORE][one, 0], strict=True)) for one in parts
    ]


def test_the_riskiest_share_of_all_tokens_is_not_learned(step, rows):
    risks = all_risks(step)
    values = sorted((value for row in risks for value in row.values()), reverse=True)
    count = round(0.25 * len(values))
    assert risk_threshold(rows, step, drop_fraction=0.25) == pytest.approx(values[count - 1], rel=1e-4)
    threshold = float(values[count - 1] + values[count]) / 2  # no token is so near that rounding would decide
    masked = rows.map(MaskRiskyTokens(step, threshold), batched=True, batch_size=5)
    plain = rows.map(MaskRiskyTokens(step, 1e9), batched=True)
    dropped = 0
    for row, wanted in enumerate(risks):
        assert masked["input_ids"][row] == plain["input_ids"][row]
        for place, (token, label) in enumerate(zip(masked["input_ids"][row], masked["labels"][row], strict=True)):
            learned = place in wanted and wanted[place] < threshold
            assert label == (token if learned else -100)
            dropped += place in wanted and not learned
    assert dropped == count and risks[-1] == {}
    assert set(masked["labels"][-1]) <= {-100}, "nothing of a row that cannot be read is known to be safe"
    halves = DatasetDict({"a": rows.select(range(5)), "b": rows.select(range(5, len(rows)))})
    assert risk_threshold(halves, step, drop_fraction=0.25) == pytest.approx(values[count - 1], rel=1e-4)
    assert rows.to_iterable_dataset().map(MaskRiskyTokens(step, threshold), batched=True).take(1)


def test_a_row_by_itself_and_the_record(step):
    mask = MaskRiskyTokens(step, np.float64(0.5))
    alone = mask({name: value for name, value in LONG.items()})
    together = mask({name: [LONG[name], BENIGN[0][name]] for name in LONG})
    assert list(alone["labels"]) == list(together["labels"][0])
    told = json.loads(json.dumps(mask.record()))
    assert told["score"]["adapters"] == step.adapters and told["threshold"] == 0.5


def test_embedded_rows_can_be_masked_by_window(base, step, rows):
    embed = EmbedLayers(base, [1], device="cpu")
    scored = rows.map(embed, batched=True).map(step, batched=True)
    risks = all_risks(step)
    for row, wanted in enumerate(risks):
        spans, scores = scored["spans"][row], scored["token_risk_span_scores"][row]
        assert len(spans) == len(scores)
        for span, score in zip(spans, scores, strict=True):
            mean = np.mean([wanted[place] for place in range(span["start"], span["stop"])])
            np.testing.assert_allclose(score, mean, rtol=1e-4, atol=1e-6)
        if scores:
            assert max(scores) == scored["token_risk_score"][row]
    long = ROWS.index(LONG)
    scores = scored["token_risk_span_scores"][long]
    assert len(scores) > 2 and scored["token_risk_stop"][long] == scored["spans"][long][int(np.argmax(scores))]["stop"]
    threshold = float(np.float32(max(scores)))
    labels = scored.map(MaskTokens(embed, IsSafe("token_risk_score", threshold)), batched=True)["labels"][long]
    window = range(scored["token_risk_start"][long], scored["token_risk_stop"][long])
    assert all(labels[place] == -100 for place in window) and any(label != -100 for label in labels)


def test_other_spans_get_the_score_of_their_row(base, step, rows, caplog):
    embed = EmbedLayers(base, [1], window=7, device="cpu")
    with caplog.at_level(logging.WARNING):
        scored = rows.map(embed, batched=True).map(step, batched=True)
    assert "window=18" in caplog.text and "spans of" in caplog.text
    long = ROWS.index(LONG)
    scores = scored["token_risk_span_scores"][long]
    assert scores == [scored["token_risk_score"][long]] * len(scored["spans"][long]) and len(scores) > 3
    assert scored["token_risk_span_scores"][-1] == []
    plain = rows.map(step, batched=True)
    assert plain["token_risk_score"][:-1] == scored["token_risk_score"][:-1]


def test_the_chosen_side_of_a_pair_is_read(base, step):
    pair = {"prompt": "Bake.", "chosen": BENIGN[0]["response"], "rejected": UNSAFE[0]["response"]}
    embedded = Dataset.from_list([pair]).map(EmbedLayers(base, [1], device="cpu"), batched=True)
    scored = embedded.map(step, batched=True)
    alone = step({"prompt": [pair["prompt"]], "response": [pair["chosen"]]})
    np.testing.assert_allclose(scored["token_risk_score"][0], alone["token_risk_score"][0], rtol=1e-4, atol=1e-6)
    rejected = np.array([span["rejected"] for span in scored["spans"][0]])
    scores = np.array(scored["token_risk_span_scores"][0])
    assert rejected.any() and np.isnan(scores[rejected]).all()
    assert scores[~rejected].max() == np.float32(scored["token_risk_score"][0])


def test_risks_are_kept_whatever_the_window(step, adapters, rows, tmp_path, monkeypatch):
    expected = step(rows[:])
    threshold = risk_threshold(rows, step)
    read = []
    whole = RiskAdapters.risks
    monkeypatch.setattr(
        RiskAdapters, "risks", lambda self, new, *rest: read.append(len(new)) or whole(self, new, *rest)
    )
    monkeypatch.setenv(SWITCH, "on")
    adapters.save(tmp_path / "adapters")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    RiskAdapters.load(tmp_path / "adapters")
    found = step(rows[:])
    assert sum(read) == len(ROWS) - 1
    for name, values in expected.items():
        for one, other in zip(found[name], values, strict=True):
            if name == "token_risk_unscored":
                assert one == other
            else:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    TokenRiskScore(adapters, window=5, device="cpu")(rows[:])
    assert risk_threshold(rows, step) == pytest.approx(threshold, rel=1e-4, abs=1e-6)
    MaskRiskyTokens(step, threshold)(rows[:])
    assert sum(read) == len(ROWS) - 1, "no row is read twice"
    stores._open.clear()


def test_errors_say_what_to_do(step, rows):
    with pytest.raises(OptionError, match="drop_fraction=1"):
        risk_threshold(rows, step, drop_fraction=1)
    with pytest.raises(DataError, match="no token has a risk"):
        risk_threshold(rows.select([len(rows) - 1]), step)
    with pytest.raises(OptionError, match="threshold=nan"):
        MaskRiskyTokens(step, float("nan"))
