import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scipy.stats import spearmanr

from hf_safefilter.decide.evaluate import evaluate
from hf_safefilter.errors import DataError, MissingError


@pytest.fixture(scope="module")
def rows() -> Dataset:
    draw = np.random.default_rng(5)
    unsafe = draw.random(400) < 0.25
    scores = np.round(draw.normal(size=400) + 1.2 * unsafe, 1).astype(np.float32)
    scores[:7] = np.nan
    return Dataset.from_dict(
        {
            "prompt": [f"p{n}" for n in range(400)],
            "response": ["x" * int(n) for n in draw.integers(1, 90, 400)],
            "label": ["unsafe" if one else "safe" for one in unsafe],
            "larf_score": scores,
            "my_score": scores,
        }
    )


def pairs(scores, unsafe) -> float:
    high, low = scores[unsafe][:, None], scores[~unsafe][None]
    return float((high > low).mean() + (high == low).mean() / 2)


def test_every_figure_by_a_second_route(rows):
    found = evaluate(rows, "label")
    one = found.separations[0]
    scores, unsafe = np.array(rows["larf_score"][:]), np.array([label == "unsafe" for label in rows["label"]])
    length = np.array([len(text) for text in rows["response"]])
    read = np.isfinite(scores)
    scores, unsafe, length = scores[read], unsafe[read], length[read]
    assert (one.score, one.scored, one.unscored) == ("larf_score", 393, 7)
    assert one.auroc == pytest.approx(pairs(scores, unsafe), abs=1e-12)
    for share, got in ((0.01, one.tpr_at_1), (0.05, one.tpr_at_5)):
        best = max((unsafe & (scores >= t)).sum() / unsafe.sum() for t in [*scores, np.inf]
                   if (~unsafe & (scores >= t)).sum() / (~unsafe).sum() <= share)  # fmt: skip
        assert got == pytest.approx(best)
    steps = [(scores >= t) for t in sorted(set(scores), reverse=True)]
    precision = [unsafe[one].mean() for one in steps]
    recall = np.diff([0.0, *[(unsafe & one).sum() / unsafe.sum() for one in steps]])
    assert one.auprc == pytest.approx(float(np.dot(precision, recall)))
    assert one.length_rho == pytest.approx(spearmanr(scores, length).statistic)


def test_the_interval_agrees_with_a_plain_bootstrap(rows):
    one = evaluate(rows, "label").separations[0]
    scores, unsafe = np.array(rows["larf_score"][:]), np.array([label == "unsafe" for label in rows["label"]])
    read = np.isfinite(scores)
    high, low = scores[read & unsafe], scores[read & ~unsafe]
    draw = np.random.default_rng(1)
    again = []
    for _ in range(1000):
        h, s = draw.choice(high, len(high)), draw.choice(low, len(low))
        again.append(pairs(np.concatenate([h, s]), np.repeat([True, False], [len(h), len(s)])))
    assert (one.low, one.high) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=0.01)
    assert one.low < one.auroc < one.high


def test_controls_stand_beside_the_methods_and_unknown_columns_do_not(rows):
    names = [one.score for one in evaluate(rows, "label").separations]
    assert names == ["larf_score", "length_score", "random_score"]
    assert "my_score" in [one.score for one in evaluate(rows, "label", scores=["my_score"]).separations]
    table = evaluate(DatasetDict(a=rows.select(range(200)), b=rows.select(range(200, 400))), "label").table()
    assert table == evaluate(rows, "label").table()
    assert table[1]["rho len"] == 1.0


def test_labels_of_one_kind_or_no_scores_are_refused(rows):
    with pytest.raises(DataError, match="both kinds"):
        evaluate(rows, "label", unsafe="harmful")
    with pytest.raises(MissingError):
        evaluate(rows, "verdict")
    with pytest.raises(DataError, match="no scores"):
        evaluate(rows.remove_columns(["larf_score"]), "label")
