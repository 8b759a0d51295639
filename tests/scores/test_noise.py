"""What chance adds to the largest of several windows is taken off: long rows are not dangerous for being long."""

import numpy as np
import pytest
from datasets import Dataset
from scipy.integrate import quad
from scipy.stats import norm
from stand_in import StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter import EmbedLayers, EnsembleScore, ProbeScore, ReferenceIndex, fit_ensemble, fit_probe
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged, offsets_of
from hf_safefilter.data.spans import SPAN
from hf_safefilter.errors import DataError, IntegrityError
from hf_safefilter.scores.probe import Probe
from hf_safefilter.scores.probe import neighbourhood as neighbourhoods
from hf_safefilter.scores.probe.neighbourhood import Neighbourhood
from hf_safefilter.scores.probe.noise import largest_by_chance, noise_of, part_and_whole
from hf_safefilter.toy.corpus import reference_rows


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40, 300, 5000])
def test_the_largest_of_as_many_normal_numbers(count):
    """Against the integral of x over the density of the largest."""
    exact, _ = quad(lambda x: x * count * norm.pdf(x) * norm.cdf(x) ** (count - 1), -9, 9, limit=200)
    assert largest_by_chance(np.array([count]))[0] == pytest.approx(exact, rel=0.05, abs=1e-9)


def test_noise_is_the_deviation_within_rows():
    rows = np.array([7, 3, 7, 7, 5, 3])
    scores = np.array([1.0, 10.0, 2.0, 6.0, 99.0, 14.0])
    squares = [(score - scores[rows == row].mean()) ** 2 for score, row in zip(scores, rows, strict=True)]
    assert noise_of(scores, rows) == pytest.approx(np.sqrt(sum(squares) / 3))  # 6 windows of 3 rows
    assert noise_of(scores[:2], rows[:2]) == 0 == noise_of(np.empty(0), np.empty(0, int))


def test_rows_of_noise_alone_score_the_same_whatever_their_length():
    draw = np.random.default_rng(0)
    means = {}
    for count in (1, 2, 5, 20, 80):
        windows = Ragged(draw.normal(scale=0.7, size=3000 * count), offsets_of(np.full(3000, count)))
        means[count] = part_and_whole(windows, None, 0.7).largest()[0].mean()
        assert abs(means[count]) < 0.03
    uncorrected = part_and_whole(windows, None, 0.0).largest()[0].mean()
    assert uncorrected > 0.7  # 80 windows reach 2.4 deviations by chance, of which half counts


def test_windows_are_counted_and_averaged_by_answer():
    spans = np.array(
        [(1, False, 0, 4), (1, False, 3, 5), (3, False, 9, 12), (1, True, 0, 4), (1, True, 4, 8), (1, False, 0, 2)],
        SPAN,
    )
    offsets = offsets_of(np.array([5, 1]))
    values = np.array([1.0, 4.0, 7.0, 2.0, 3.0, 5.0])
    found = part_and_whole(Ragged(values, offsets), Ragged(spans, offsets), 0.5)
    first, rejected = (1 * 4 + 4 * 2) / 6, 2.5
    wholes = np.array([first, first, 7.0, rejected, rejected, 5.0])
    by_chance = largest_by_chance(np.array([2, 2, 1, 2, 2, 1]))
    np.testing.assert_allclose(found.values, (values - 0.5 * by_chance + wholes) / 2, rtol=1e-6)
    assert found.values.dtype == np.float32 and found.values[-1] == 5
    assert len(part_and_whole(Ragged(values[:0], np.array([0, 0])), None, 1.0).values) == 0


def test_what_else_a_conversation_holds_changes_no_answer():
    """A long harmless turn would otherwise hide a dangerous one."""
    answer, turn = [1.2, 1.4, 1.6, 1.8, 2.0], []
    for count in (0, 1, 300):
        spans = np.array([(1, False, 3 * at, 3 * at + 4) for at in range(5)] + [(3, False, 0, 4)] * count, SPAN)
        offsets = offsets_of(np.array([5 + count]))
        scores = Ragged(np.array(answer + [-1.0] * count), offsets)
        turn.append(part_and_whole(scores, Ragged(spans, offsets), 0.5).largest()[0][0])
    assert turn[0] == turn[1] == turn[2]


@pytest.fixture(scope="module")
def windows():
    """References of several windows each, read by the toy."""
    embed = EmbedLayers("toy", [2, 3], position="mean,last_prompt", window=8)
    sides = [[{**row, "response": row["response"] * repeats} for row in side]
             for side, repeats in zip(reference_rows(9, 3), (3, 2), strict=True)]  # fmt: skip
    return ReferenceIndex.build(*sides, embed, license="mit", source="the tests")


def owners(index):
    first, second = index.owners("unsafe"), index.owners("safe")
    return np.concatenate([first, second + len(index.rows("unsafe"))])


def test_the_noise_of_a_probe_is_that_of_its_examples(windows):
    probe = fit_probe(windows, [2, 3])
    vectors = np.concatenate([np.concatenate(windows.vectors(layer)) for layer in (2, 3)], axis=1)
    assert probe.noise == pytest.approx(noise_of(probe.score(vectors), owners(windows)), rel=1e-9)
    assert probe.noise > 0 and ProbeScore(probe).noise == probe.noise


def test_the_noise_of_an_ensemble_is_that_of_references_beside_those_of_other_requests(windows):
    probe = fit_ensemble(windows, [2])
    numbers = {}
    asked = [[numbers.setdefault(row.conversation.messages[0].content, len(numbers)) for row in windows.rows(side)]
             for side in ("unsafe", "safe")]  # fmt: skip
    requests = [np.array(own)[windows.owners(side)] for own, side in zip(asked, ("unsafe", "safe"), strict=True)]
    sides = {layer: [Ragged(own, np.arange(len(own) + 1)) for own in windows.vectors(layer)] for layer in probe.layers}
    near = [Neighbourhood.of(sides[layer], requests).own for layer in probe.layers]
    vectors = np.concatenate([np.concatenate(windows.vectors(layer)) for layer in probe.layers], axis=1)
    own = (probe.score(vectors) + np.mean(near, axis=0)) / 2
    step = EnsembleScore(probe)
    assert step.noise == pytest.approx(noise_of(own, owners(windows)), rel=1e-6)
    assert step.noise != probe.noise


@pytest.mark.parametrize("step", [
    lambda references: ProbeScore(fit_probe(references, 3)),
    lambda references: EnsembleScore(fit_ensemble(references, 3)),
])  # fmt: skip
def test_rows_of_several_windows_are_scored_so(windows, step):
    embed = EmbedLayers("toy", [2, 3], position="mean,last_prompt", window=8)
    _, safe = reference_rows(12, 4)
    read = embed({name: [row[name] for row in safe] for name in ("prompt", "response")})
    score = step(windows)
    found = score(read)[score.produces()[0]]
    each = score.vectors(Batch(read))
    expected = []
    for row, spans in enumerate(read["spans"]):
        scores = score.span_scores(each.row(row))
        whole = np.average(scores, weights=[span["stop"] - span["start"] for span in spans])
        expected.append((scores.max() - score.noise * largest_by_chance(np.array([len(scores)]))[0] + whole) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert max(map(len, read["spans"])) > 2


def labelled(windows, rejected=()):
    """Rows of some windows each, every other one unsafe; of some a rejected side."""
    spans, vectors = [], []
    for row, count in enumerate(windows):
        sides = [(1, False)] * count + [(1, True)] * count * (row in rejected)
        spans.append([dict(zip(SPAN.names, (*side, 3 * at, 3 * at + 4), strict=True)) for at, side in enumerate(sides)])
        texts = [f"{'Sorry' if side[1] else 'Sure'}, {row}." + at * "." for at, side in enumerate(sides)]
        vectors.append([vector_of(text).tolist() for text in texts])
    labels = ["unsafe", "safe"] * (len(windows) // 2)
    return Dataset.from_dict({"emb_layer_2": vectors, "spans": spans, "label": labels})


def test_labelled_rows_count_in_the_noise_of_a_probe():
    index = ReferenceIndex.build(unsafe_rows(20), safe_rows(15), StandIn((2,)), license="mit", source="the tests")
    assert fit_probe(index, 2).noise == 0  # its references have one window each
    rows = labelled([3, 1, 2, 4])
    probe = fit_probe(index, 2, labeled=rows)
    scores = [probe.score(np.array(vectors, np.float32)) for vectors in rows["emb_layer_2"]]
    within = np.concatenate([own - own.mean() for own in scores])
    assert probe.noise == pytest.approx(np.sqrt((within**2).sum() / (10 - 4)))


def test_the_rejected_side_of_a_labelled_pair_is_not_what_its_label_speaks_of():
    index = ReferenceIndex.build(unsafe_rows(20), safe_rows(15), StandIn((2,)), license="mit", source="the tests")
    probes = [fit_probe(index, 2, labeled=labelled([2, 1, 1, 2], rejected)) for rejected in ((), (0, 3))]
    np.testing.assert_array_equal(probes[0].directions, probes[1].directions)
    assert probes[0].noise == probes[1].noise > 0


def test_labelled_rows_are_read_at_all_layers():
    index = ReferenceIndex.build(unsafe_rows(20), safe_rows(15), StandIn((2, 3)), license="mit", source="the tests")
    rows = labelled([1, 1, 1, 1])
    rows = rows.add_column("emb_layer_3", [*rows["emb_layer_2"][:3], []])
    with pytest.raises(DataError, match="do not belong together"):
        fit_probe(index, [2, 3], labeled=rows)
    with pytest.raises(DataError, match="not read alike"):
        fit_probe(index, [2, 3], labeled=rows.remove_columns("spans"))


@pytest.mark.parametrize("noise", [None, "x", [1], -1.0, 10**400, True])
def test_a_probe_that_states_no_noise_scores_no_row(windows, noise):
    sound = fit_probe(windows, 3)
    files = {name: sound.bytes_of(name) for name in sound.files[:-1]}
    other = Probe.make({**sound.facts, "noise": noise}, files)
    with pytest.raises(IntegrityError, match="noise of its windows"):
        _ = other.noise
    vectors = windows.vectors(3)[0]
    np.testing.assert_array_equal(other.score(vectors), sound.score(vectors))


def test_many_references_are_searched_in_whole_rows(monkeypatch):
    monkeypatch.setattr(neighbourhoods, "WIDEST", 40)
    for counts in (np.full(60, 2), np.arange(1, 31), np.array([90, 1, 1]), np.full(30, 1)):
        side = Ragged(np.zeros((counts.sum(), 2)), offsets_of(counts))
        places = neighbourhoods.spread(side)
        assert len(places) <= 40 and (np.diff(places) > 0).all()
        kept = np.bincount(side.owners[places], minlength=len(counts))
        if counts.max() < 40:
            whole = kept[kept > 0] == counts[kept > 0]
            assert whole.mean() > 0.8 and len(places) >= min(counts.sum(), 20)
        else:
            assert kept[0] > 30
