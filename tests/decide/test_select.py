import pickle

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.fingerprint import Hasher
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_safefilter.data.arrow_files import materialise
from hf_safefilter.decide.select import IsSafe, split
from hf_safefilter.decide.thresholds import Threshold, threshold_for
from hf_safefilter.errors import DataError, MissingError, OptionError

SCORES = st.lists(st.floats(-5, 5, width=32) | st.sampled_from([0.0, 1.0, float("nan"), float("inf")]), min_size=3,
                  max_size=60)  # fmt: skip


def rows(scores) -> Dataset:
    return Dataset.from_dict({"text": [f"row {n}" for n in range(len(scores))], "x_score": np.float32(scores)})


def test_only_a_finite_score_below_the_threshold_is_kept_on_every_host():
    ds = rows([0.5, 1.0, 1.5, np.nan, np.inf, -np.inf])
    is_safe = IsSafe("x_score", 1.0)
    for kept in (
        ds.filter(is_safe, batched=True)["text"][:],
        ds.filter(is_safe)["text"][:],
        [row["text"] for row in ds.to_iterable_dataset().filter(is_safe)],
        [row["text"] for row in ds.to_iterable_dataset().filter(is_safe, batched=True)],
        DatasetDict(a=ds).filter(is_safe, batched=True)["a"]["text"][:],
        ds.with_format("arrow").filter(is_safe, batched=True).with_format(None)["text"][:],
        split(ds, is_safe).kept["text"][:],
    ):
        assert kept == ["row 0"]
    assert is_safe({"x_score": 0.5}) is True
    assert is_safe({"x_score": [0.5, 2.0]}).tolist() == [True, False]


def test_a_predicate_is_configuration_only():
    is_safe = IsSafe("x_score", Threshold(1.0, "by hand"))
    assert pickle.loads(pickle.dumps(is_safe)) == is_safe  # noqa: S301
    before = Hasher.hash(is_safe)
    is_safe({"x_score": [0.1]})
    assert Hasher.hash(is_safe) == before != Hasher.hash(IsSafe("x_score", 1.5))
    assert is_safe.rule == "by hand"


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -float("inf"), "1", None, True])
def test_a_threshold_that_decides_nothing_is_refused(threshold):
    with pytest.raises(OptionError):
        IsSafe("x_score", threshold)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scores=SCORES, count=st.integers(1, 20))
@example(scores=[0.0, np.nan, np.nan], count=2)
def test_counts_are_reached_and_only_ties_exceed_them(scores, count):
    data = {"x_score": np.float32(scores)}
    finite = np.sort([s for s in np.float32(scores) if np.isfinite(s)])[::-1]
    try:
        found = threshold_for(data, "x_score", drop_count=count)
    except OptionError:
        assert count >= len(finite)
        return
    except DataError:
        assert len(finite) < 2 or (finite >= finite[count - 1]).all()
        return
    dropped = finite[finite >= found]
    assert len(dropped) >= count
    assert found == finite[count - 1]
    kept = IsSafe("x_score", found)(data)
    assert kept.sum() == len(finite) - len(dropped)


@pytest.mark.parametrize("way", [{"drop_count": 1}, {"drop_fraction": 0.5}, {"label": "label"}])
def test_rows_without_any_score_have_no_threshold_and_it_is_said_why(way):
    data = {"x_score": [np.nan, np.inf, np.nan], "label": ["safe", "unsafe", "safe"]}
    with pytest.raises(DataError, match=r"0 of 3 rows could be scored\n.*'x_score' holds no number"):
        threshold_for(data, "x_score", **way)
    reasons = ["too_long", "empty_response", "too_long"]
    told = data | {"unscorable": reasons}
    for scored in (told, Dataset.from_dict(told), DatasetDict(a=Dataset.from_dict(told))):
        with pytest.raises(DataError, match=r"0 of 3 rows[\s\S]*2 too_long, 1 empty_response[\s\S]*too_long=windows"):
            threshold_for(scored, "x_score", **way)


def test_a_share_is_of_the_scored_rows():
    data = {"x_score": np.float32([*range(100), *[np.nan] * 50])}
    found = threshold_for(data, "x_score", drop_fraction=0.1)
    assert (float(found), found.rule) == (90.0, "the highest 10 % of 100 scored rows dropped")
    tied = threshold_for({"x_score": [0.0] * 90 + [1.0] * 10}, "x_score", drop_count=3)
    assert "7 more tie" in tied.rule


def brute(scores, unsafe):
    return [(t, *(np.array([(scores >= t) & unsafe, (scores >= t) & ~unsafe, (scores < t) & unsafe]).sum(1)))
            for t in sorted(set(scores))]  # fmt: skip


def test_labelled_rules_find_what_a_plain_search_finds():
    draw = np.random.default_rng(3)
    unsafe = draw.random(300) < 0.3
    scores = np.round(draw.normal(size=300) + unsafe, 1)
    data = {"x_score": scores, "label": ["unsafe" if one else "safe" for one in unsafe]}
    table = brute(scores, unsafe)
    best = max(2 * tp / (2 * tp + fp + fn) for _, tp, fp, fn in table)
    found = threshold_for(data, "x_score", label="label")
    tp, fp, fn = next(row[1:] for row in table if row[0] == found)
    assert 2 * tp / (2 * tp + fp + fn) == pytest.approx(best)
    found = threshold_for(data, "x_score", label="label", rule="tpr_at_fpr", max_fpr=0.05)
    allowed = [t for t, _, fp, _ in table if fp / (~unsafe).sum() <= 0.05]
    assert float(found) == min(allowed)
    numbers = data | {"label": unsafe.astype(int)}
    assert threshold_for(numbers, "x_score", label="label", unsafe=1, max_fpr=0.05) == found


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, OptionError),
        ({"drop_count": 1, "drop_fraction": 0.1}, OptionError),
        ({"drop_fraction": 0.0}, OptionError),
        ({"drop_fraction": 1.0}, OptionError),
        ({"drop_count": 0}, OptionError),
        ({"drop_count": 4}, OptionError),
        ({"drop_count": True}, OptionError),
        ({"threshold": float("nan")}, OptionError),
        ({"drop_count": 1, "max_fpr": 0.1}, OptionError),
        ({"label": "label", "rule": "best"}, OptionError),
        ({"label": "label", "rule": "best_f1", "max_fpr": 0.1}, OptionError),
        ({"label": "label", "rule": "tpr_at_fpr"}, OptionError),
        ({"label": "label", "unsafe": "bad"}, DataError),
        ({"label": "none"}, MissingError),
        ({"known_good": [1.0]}, OptionError),
        ({"known_good": [1.0], "max_loss": 0.05, "confidence": 0.95}, OptionError),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(options, error):
    data = {"x_score": [1.0, 2.0, 3.0, 4.0], "label": ["safe", "safe", "unsafe", "unsafe"]}
    with pytest.raises(error):
        threshold_for(data, "x_score", **options)


def test_split_is_the_filter_written_out_and_the_source_is_untouched(tmp_path):
    ds = rows(np.random.default_rng(0).normal(size=1000))
    ds.save_to_disk(tmp_path / "rows")
    ds = Dataset.load_from_disk(tmp_path / "rows")
    before = {path: path.read_bytes() for path in (tmp_path / "rows").iterdir()}
    is_safe = IsSafe("x_score", 0.3)
    for part in (ds, ds.shuffle(seed=1).select(range(400)), ds.select([])):
        found = split(part, is_safe)
        assert found.kept["text"][:] == part.filter(is_safe, batched=True)["text"][:]
        assert len(found.kept) + len(found.dropped) == len(part)
        assert found.kept.features == found.dropped.features == ds.features
        assert found.kept._indices is None
    assert split(ds, is_safe).kept._fingerprint == split(ds, is_safe).kept._fingerprint
    assert {path: path.read_bytes() for path in before} == before
    both = split(DatasetDict(a=ds, b=ds), is_safe)
    assert both.kept["a"]["text"][:] == both.kept["b"]["text"][:]
    with pytest.raises(MissingError, match="y_score"):
        split(ds, IsSafe("y_score", 0.0))


def nothing():
    yield from ()


def test_a_stream_is_laid_down_row_by_row():
    ds = rows(range(3000))
    laid = materialise(ds.to_iterable_dataset())
    assert laid.to_list() == ds.to_list()
    with pytest.raises(DataError, match="no rows"):
        materialise(IterableDataset.from_generator(nothing))
