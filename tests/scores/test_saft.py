"""SAFT's directions against golden values, a full decomposition, and planted harm."""

import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value

from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.scores.base import ROWS_PER_BATCH
from hf_safefilter.scores.saft import SaftScore, SaftSubspace, fit_saft
from hf_safefilter.scores.saft.leading import Moments

X = np.array([[1, 2, 3], [2, 0, -1], [-1, 1, 0], [0, 3, 1]], dtype=np.float64)


def embedded(vectors, **columns) -> Dataset:
    kind = Value(str(vectors.dtype))
    ds = Dataset.from_dict({"emb_layer_3": vectors.tolist()} | columns)
    return ds.cast_column("emb_layer_3", List(kind, length=vectors.shape[1]))


def auroc(scores, bad):
    return np.mean([np.mean(one > scores[~bad]) + np.mean(one == scores[~bad]) / 2 for one in scores[bad]])


GOLDEN = {
    False: (
        [4.6637182408, 2.4247213573, 1.8358808540],
        [12.5391610727, 0.2171281213, 0.4495505262, 8.5444281094],
        [6.5378727850, 2.1328132329, 0.8219555751, 4.3221291519],
    ),
    True: (
        [3.4766929728, 2.2884172746, 1.1940487218],
        [3.8619767205, 6.5801900582, 0.3090588831, 1.3361683654],
        [2.6776381061, 3.7635794665, 1.3366593187, 0.8842469336],
    ),
}


@pytest.mark.parametrize("center", [False, True])
def test_golden(center):
    sigma, first, two = GOLDEN[center]
    ds = embedded(X)
    one, both = (fit_saft(ds, 3, k=k, center=center, normalize_rows=False) for k in (1, 2))
    exactly = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(fit_saft(ds, 3, k=3, center=center, normalize_rows=False).sigma, sigma, **exactly)
    np.testing.assert_allclose(one.strength(X), first, **exactly)
    np.testing.assert_allclose(both.strength(X), two, **exactly)
    found = ds.map(SaftScore(both), batched=True).with_format("numpy")["saft_score"][:]
    np.testing.assert_allclose(found, two, rtol=1e-6)


def decomposition(vectors, center=False, normalize_rows=False, k=1, weight="none"):
    """All at once, by the singular value decomposition in float64."""
    rows = vectors.astype(np.float64)
    if normalize_rows:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows - rows.mean(axis=0) if center else rows
    _, sigma, right = np.linalg.svd(rows, full_matrices=False)
    weights = sigma[:k] if weight == "sigma" else np.ones(k)
    return np.mean((rows @ right[:k].T * weights) ** 2, axis=1), sigma[:k], right[:k].T


@pytest.mark.parametrize("options", [
    {}, {"k": 3}, {"center": True}, {"center": True, "k": 2, "weight": "sigma"}, {"normalize_rows": True},
    {"normalize_rows": True, "center": True, "k": 4, "weight": "sigma"},
])  # fmt: skip
@pytest.mark.parametrize("shape", [(3 * ROWS_PER_BATCH + 17, 24), (20, 48)], ids=["tall", "wide"])
def test_a_stream_finds_what_the_whole_matrix_has(options, shape):
    rng = np.random.default_rng(3)
    scale = np.geomspace(8, 1, shape[1])
    vectors = (rng.normal(size=shape) * scale + 30 * rng.normal(size=shape[1])).astype(np.float16)
    subspace = fit_saft(embedded(vectors), 3, **{"normalize_rows": False} | options)
    scores, sigma, directions = decomposition(vectors, **options)
    cosines = np.linalg.svd(directions.T @ subspace.directions, compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-10)  # angles under 1.5e-5
    np.testing.assert_allclose(subspace.sigma, sigma, rtol=1e-5)
    np.testing.assert_allclose(
        subspace.strength(vectors.astype(np.float64)), scores, rtol=1e-3, atol=1e-4 * scores.max()
    )
    if options.get("weight") is None:
        total = subspace.strength(vectors.astype(np.float64)).sum()
        np.testing.assert_allclose(total, np.mean(subspace.sigma**2), rtol=1e-5)


def test_a_large_mean_does_not_drown_the_variance():
    # float32 products of entries near 1000 carry errors of the size of the variance itself.
    rng = np.random.default_rng(4)
    vectors = (1000 + rng.normal(size=(9000, 20)) * np.geomspace(3, 0.5, 20)).astype(np.float32)
    found = fit_saft(embedded(vectors), 3, center=True, normalize_rows=False)
    _, sigma, directions = decomposition(vectors, center=True)
    assert abs(float(found.directions[:, 0] @ directions[:, 0])) > 1 - 1e-8
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-5)


def test_planted_harm_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    vectors, bad = rng.normal(size=(4000, 32)), np.arange(4000) % 5 == 0
    vectors[bad] += 12 * np.eye(32)[3]
    ds = embedded(vectors.astype(np.float32))
    scores = fit_saft(ds, 3).strength(vectors)
    assert auroc(scores, bad) > 0.99
    assert abs(auroc(scores, rng.permutation(bad)) - 0.5) < 0.04


def test_unreadable_rows_are_skipped_and_counted():
    vectors = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    holes = vectors.copy()
    holes[3], holes[10, 2], holes[20] = np.nan, np.inf, 0
    subspace = fit_saft(embedded(holes), 3)
    assert (subspace.facts["rows"], subspace.facts["skipped"]) == (47, 3)
    kept = fit_saft(embedded(np.delete(vectors, [3, 10, 20], axis=0)), 3)
    np.testing.assert_allclose(subspace.directions, kept.directions, atol=1e-12)


def in_spans(vectors, counts, **columns) -> Dataset:
    """The same vectors, so many of them a row."""
    stops = np.cumsum(counts)
    cells = [vectors[stop - count : stop].tolist() for count, stop in zip(counts, stops, strict=True)]
    kind = List(List(Value(str(vectors.dtype)), length=vectors.shape[1]))
    return Dataset.from_dict({"emb_layer_3": cells} | columns).cast_column("emb_layer_3", kind)


def test_every_span_of_a_row_is_a_vector_of_its_own():
    draw = np.random.default_rng(5)
    counts = draw.integers(0, 4, size=60)
    vectors = draw.normal(size=(counts.sum(), 6)).astype(np.float32)
    found, alone = fit_saft(in_spans(vectors, counts), 3, k=2), fit_saft(embedded(vectors), 3, k=2)
    np.testing.assert_array_equal(found.directions, alone.directions)
    assert found.facts["spans"] == alone.facts["spans"] == counts.sum()
    assert (found.facts["rows"], found.facts["skipped"]) == ((counts > 0).sum(), (counts == 0).sum())


def test_a_row_of_which_no_span_can_be_read_is_skipped():
    vectors = np.random.default_rng(6).normal(size=(8, 4)).astype(np.float32)
    vectors[[1, 4, 5]] = np.nan
    facts = fit_saft(in_spans(vectors, [2, 2, 2, 1, 1]), 3).facts  # of the first row one can be read, of the third none
    assert (facts["rows"], facts["spans"], facts["skipped"]) == (4, 5, 1)


def test_labels_settle_the_sign_by_the_span_that_counts():
    """Unsafe rows have one long vector among short ones, safe rows a middling one each: only the largest tells them."""
    draw = np.random.default_rng(7)
    lengths = np.array([[9, 1, 1] if n % 2 else [4, 4, 4] for n in range(40)]).ravel()
    vectors = (lengths[:, None] * np.eye(5)[0] + 0.01 * draw.normal(size=(120, 5))).astype(np.float32)
    labels = ["unsafe" if n % 2 else "safe" for n in range(40)]
    found = fit_saft(in_spans(vectors, [3] * 40, label=labels), 3, label="label", normalize_rows=False)
    assert found.sign == 1 and found.facts["orientation"]["auroc"] == 1
    turned = ["safe" if n % 2 else "unsafe" for n in range(40)]
    assert fit_saft(in_spans(vectors, [3] * 40, label=turned), 3, label="label", normalize_rows=False).sign == -1


def test_a_filtered_data_set_and_splits_give_their_own_rows():
    vectors = np.random.default_rng(2).normal(size=(300, 5)).astype(np.float16)
    ds = embedded(vectors)
    picked = np.random.default_rng(0).permutation(300)[:120]
    expected = fit_saft(embedded(vectors[picked]), 3)
    assert fit_saft(ds.select(picked), 3) == expected
    halves = DatasetDict({"a": embedded(vectors[picked[:50]]), "b": embedded(vectors[picked[50:]])})
    np.testing.assert_allclose(fit_saft(halves, 3).directions, expected.directions, atol=1e-5)
    streamed = fit_saft(ds.select(picked).to_iterable_dataset(), 3)
    np.testing.assert_allclose(streamed.directions, expected.directions, atol=1e-5)


def test_memory_is_that_of_a_few_batches(monkeypatch):
    seen = []
    add = Moments.add
    monkeypatch.setattr(Moments, "add", lambda self, rows: (seen.append(len(rows)), add(self, rows))[1])
    held = []
    leading = Moments.leading
    monkeypatch.setattr(Moments, "leading", lambda self, k: (held.append(len(self._buffer)), leading(self, k))[1])
    fit_saft(embedded(np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float16)), 3)
    assert max(seen) <= ROWS_PER_BATCH and len(seen) == 5 and held == [0]


def test_labels_settle_the_sign(caplog):
    rng = np.random.default_rng(8)
    bad = np.arange(200) % 2 == 0
    vectors = rng.normal(size=(200, 6)) + np.where(bad[:, None], 0, 9 * np.eye(6)[0])
    labels = [None if n > 150 else "unsafe" if one else "safe" for n, one in enumerate(bad)]
    ds = embedded(vectors.astype(np.float32), label=labels)
    subspace = fit_saft(ds, 3, label="label")
    assert subspace.sign == -1 and subspace.facts["orientation"]["signal"]
    assert subspace.facts["orientation"]["unsafe_rows"] + subspace.facts["orientation"]["safe_rows"] == 151
    assert auroc(subspace.strength(vectors), bad) > 0.99
    assert fit_saft(ds, 3).sign == 1
    noise = embedded(rng.normal(size=(200, 6)).astype(np.float32), label=list(rng.permutation(bad)))
    with caplog.at_level(logging.WARNING):
        assert not fit_saft(noise, 3, label="label", unsafe=True).facts["orientation"]["signal"]
    assert "no signal" in caplog.text


class References:
    """What `fit_saft` asks of a reference index."""

    digest = "of these"

    def __init__(self, unsafe, refused):
        self.sides = unsafe.astype(np.float32), refused.astype(np.float32)

    def vectors(self, layer):
        return self.sides

    def refused(self, layer):
        return self.sides[1]


@pytest.mark.parametrize("turn", [1, -1])
def test_references_say_at_which_end_of_each_direction_harm_lies(turn):
    draw = np.random.default_rng(11)
    bad = np.arange(400) % 2 == 0
    apart = np.zeros(8)
    apart[2] = 3 * turn
    vectors = 5 + draw.normal(size=(400, 8)) + np.where(bad[:, None], apart, -apart)
    references = References(5 + apart + draw.normal(size=(10, 8)), 5 - apart + draw.normal(size=(10, 8)))
    subspace = fit_saft(embedded(vectors.astype(np.float32)), 3, references=references)
    assert subspace.facts["center"] and subspace.facts["references"] == "of these"
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    _, _, right = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    by_hand = (unit - unit.mean(axis=0)) @ right[0]
    by_hand *= np.sign(by_hand[bad].mean())
    np.testing.assert_allclose(subspace.strength(vectors), by_hand, atol=1e-5)
    assert auroc(subspace.strength(vectors), bad) > 0.99 > auroc(fit_saft(embedded(vectors), 3).strength(vectors), bad)
    with pytest.raises(OptionError, match="no two ends"):
        fit_saft(embedded(vectors), 3, references=references, center=False)


def test_too_few_labels_are_refused():
    vectors = np.random.default_rng(9).normal(size=(40, 4)).astype(np.float32)
    for labels in ([None] * 40, ["unsafe"] * 40, (["unsafe", "safe"] * 9 + [None] * 22)):
        with pytest.raises(DataError, match="too few labels"):
            fit_saft(embedded(vectors).add_column("label", labels, feature=Value("string")), 3, label="label")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    subspace = fit_saft(embedded(X), 3, k=2, center=True)
    again = SaftSubspace.load(subspace.save(tmp_path / "subspace"))
    assert again == subspace and SaftScore(again) == SaftScore(subspace.digest, 3)
    np.testing.assert_array_equal(again.directions, subspace.directions)
    assert fit_saft(embedded(X), 3, k=2, center=True).digest == subspace.digest


def test_errors_say_what_to_do():
    ds = embedded(X)
    with pytest.raises(MissingError, match=r"emb_layer_4[\s\S]*EmbedLayers\(model, layers=\[4\]\)"):
        fit_saft(ds, 4)
    with pytest.raises(OptionError, match="k=0"):
        fit_saft(ds, 3, k=0)
    with pytest.raises(OptionError, match="none, sigma"):
        fit_saft(ds, 3, weight="all")
    with pytest.raises(DataError, match="fewer than 4 directions"):
        fit_saft(ds, 3, k=4)
    with pytest.raises(DataError, match="fewer than 2 directions"):
        fit_saft(embedded(np.outer(np.arange(1, 9), np.ones(3))), 3, k=2)
    with pytest.raises(DataError, match="no vector that can be read"):
        fit_saft(embedded(np.full((4, 3), np.nan)), 3)
    with pytest.raises(OptionError, match="fitted at layer 3, not 5"):
        SaftScore(fit_saft(ds, 3), 5)
    narrow = Dataset.from_dict(
        {"emb_layer_3": [[1.0, 2.0]]}, features=Features({"emb_layer_3": List(Value("float32"))})
    )
    with pytest.raises(DataError, match="length 2 among"):
        fit_saft(DatasetDict({"a": ds, "b": narrow}), 3)
