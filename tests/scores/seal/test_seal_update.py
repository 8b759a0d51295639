"""The update of both levels: published golden values, closed forms, and loops written out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from hf_safefilter.errors import ModelError
from hf_safefilter.scores.seal.bilevel import Bilevel
from hf_safefilter.scores.seal.learner import Learner
from hf_safefilter.scores.seal.training_processes import Processes
from hf_safefilter.scores.seal.weights import RowWeights


def tensor(*values, kind=torch.float64):
    return torch.tensor(values, dtype=kind)


def indices(*values):
    return torch.tensor(values)


def close(found, expected, tolerance=1e-9):
    found = [one.detach() for one in found] if isinstance(found, (list, tuple)) else found.detach()
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, rtol=0, atol=tolerance)


def test_two_steps_of_the_softmax_selector_are_golden():
    weights = RowWeights(4, "softmax", 5e-3)
    assert weights.step(indices(0, 2), tensor(2, 0.5)).objective == pytest.approx(1.25, abs=1e-12)
    close(weights.logits.grad, [0.6875, -0.3125, -0.0625, -0.3125])
    close(weights.logits, [0.0950000001, 0.1049999998, 0.1049999992, 0.1049999998], 1e-10)
    assert weights.step(indices(1, 3), tensor(1, 3)).objective == pytest.approx(2.0049874899, abs=1e-10)
    close(weights.logits.grad, [-0.4974969272, -0.0012499819, -0.5024968540, 1.0012437631], 1e-10)
    close(weights.logits, [0.0944661029, 0.1084082906, 0.1090564605, 0.1024718470], 1e-10)
    close(weights.all(), [0.9908899988, 1.0048019291, 1.0054534226, 0.9988546495], 1e-10)


def test_a_step_of_the_sigmoid_selector_is_golden():
    weights = RowWeights(4, "sigmoid", 5e-3)
    assert weights.step(indices(0, 2), tensor(2, 0.5)).objective == pytest.approx(1.2499375, abs=1e-10)
    close(weights.logits.grad, [0.4999999988, 0, 0.1249999997, 0], 1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**31))
def test_the_gradient_is_the_closed_form(size, seed):
    rng = np.random.default_rng(seed)
    n = size + int(rng.integers(0, 9))
    weights = RowWeights(n, "softmax", 1e-3)
    logits = rng.normal(size=n)
    with torch.no_grad():
        weights.logits.copy_(torch.from_numpy(logits))
    batch, losses = rng.permutation(n)[:size], rng.uniform(0.01, 3, size)
    weights.step(torch.from_numpy(batch), torch.from_numpy(losses))
    s = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    inside = np.zeros(n)
    inside[batch] = losses / size
    expected = n * s * (inside - (s[batch] * losses).sum() / size)
    norm = np.linalg.norm(expected)
    close(
        weights.logits.grad, expected * min(1, 10 / max(norm, 1e-9)), 2e-6 if norm > 10 else 1e-12
    )  # clipping adds 1e-6


def test_plain_descent_follows_the_gradient_and_ranks_rows_by_their_loss():
    losses = np.random.default_rng(0).gamma(20, 0.2, 30)
    plain, published = RowWeights(30, "softmax", 0.1, "sgd"), RowWeights(30, "softmax", 5e-3)
    before = plain.logits.detach().clone()
    plain.step(indices(0, 2), tensor(2, 0.5))
    close(plain.logits, (before - 0.1 * plain.logits.grad).numpy(), 1e-15)
    plain = RowWeights(30, "softmax", 0.1, "sgd")
    for weights in (plain, published):
        for start in (*range(0, 30, 3), *range(0, 30, 3)):
            weights.step(torch.arange(start, start + 3), torch.from_numpy(losses[start : start + 3]))
    agreement = [spearmanr(-one.logits.detach(), losses).statistic for one in (plain, published)]
    assert agreement[0] > 0.999
    assert agreement[1] < 0.9  # Adam's steps remember when a row was visited as well as how it did
    assert plain.state().keys() == {"logits", "active"}
    plain.restore(plain.state())


def test_weights_of_the_softmax_have_mean_one():
    weights = RowWeights(7, "softmax", 0.5)
    for step in range(5):
        weights.step(indices(step, step + 1), tensor(1.0 + step, 0.3))
    assert weights.all().sum().item() == pytest.approx(7, abs=1e-12)
    close(weights.at(indices(3, 1)), weights.all()[[3, 1]].detach().numpy())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_a_finite_loss_is_as_if_it_had_never_been_there(activation, bad):
    with_it, without = RowWeights(4, activation, 5e-3), RowWeights(3, activation, 5e-3)
    step = with_it.step(indices(0, 3, 2), tensor(2, bad, 0.5))
    without.step(indices(0, 2), tensor(2, 0.5))
    assert step.excluded.tolist() == [3]
    for _ in range(3):
        with_it.step(indices(1, 2), tensor(0.4, 0.7))
        without.step(indices(1, 2), tensor(0.4, 0.7))
    close(with_it.logits[:3], without.logits.detach().numpy(), 1e-15)
    close(with_it.all()[:3], without.all().detach().numpy(), 1e-15)
    assert with_it.all()[3] == 0 and torch.isfinite(with_it.logits).all()


def test_a_batch_of_nothing_but_nan_changes_no_logit():
    weights = RowWeights(3, "softmax", 5e-3)
    weights.step(indices(0, 1), tensor(1, 2))
    before = weights.logits.detach().clone()
    assert math.isnan(weights.step(indices(2), tensor(math.nan)).objective)
    assert torch.equal(weights.logits, before)
    assert weights.active.tolist() == [True, True, False]


def test_state_goes_on_where_it_was():
    one, other = (RowWeights(5, "softmax", 1e-2) for _ in range(2))
    for step in range(3):
        one.step(indices(step, 4), tensor(1 + step, math.nan if step == 1 else 0.2))
    other.restore({name: value.clone() for name, value in one.state().items()})
    for weights in (one, other):
        weights.step(indices(0, 2), tensor(0.3, 2))
    assert torch.equal(one.logits, other.logits) and torch.equal(one.active, other.active)


class Line(torch.nn.Module):
    """Two parameters: the loss of an example (x, y) is (a x + b - y)^2."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(tensor(value)[0]) for value in (0.3, -0.2))


def squared(model, examples):
    x, y = torch.tensor(examples, dtype=torch.float64).T
    return (model.a * x + model.b - y) ** 2


def line(learning_rate=0.05, micro_batch=2):
    model = Line()
    trained = {"a": model.a, "b": model.b}
    return model, Learner(model, squared, trained, learning_rate, micro_batch, Processes(cpu=True))


class ByHand:
    """Adam (betas 0.9, 0.95) on a vector, and the clipping before it."""

    def __init__(self, start, rate, clip):
        self.x, self.rate, self.clip = np.array(start, dtype=float), rate, clip
        self.m, self.v, self.t = np.zeros_like(self.x), np.zeros_like(self.x), 0

    def step(self, gradient):
        norm = np.linalg.norm(gradient)
        gradient = gradient * min(1, self.clip / (norm + 1e-6))
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.95 * self.v + 0.05 * gradient**2
        step = self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.95**self.t)) + 1e-8)
        self.x = self.x - self.rate * step


def losses_of(line, examples):
    return np.array([(line[0] * x + line[1] - y) ** 2 for x, y in examples])


def slopes_of(line, examples):
    return np.array([[2 * (line[0] * x + line[1] - y) * x, 2 * (line[0] * x + line[1] - y)] for x, y in examples])


ROWS = [(1.0, 2.0), (0.5, -1.0), (2.0, 0.1), (-1.0, 1.5), (0.2, 0.9)]
SAFE = [(1.0, 0.0), (2.0, 1.0), (3.0, 3.0)]
STEPS = [(1.0, [0, 1], [0, 1]), (0.6, [2, 3], [2, 0]), (0.0, [4], [1]), (0.3, [0, 4, 2], [2, 1, 0])]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_model_moves_first_and_the_selector_by_the_losses_from_before(auxiliary):
    """Both levels against a loop over numbers; losses taken after the model's step would give other logits."""
    _, learner = line()
    beside = line()[1] if auxiliary else None
    weights = RowWeights(len(ROWS), "softmax", 0.02)
    both = Bilevel(learner, weights, Processes(cpu=True), beside)
    theta, hat, logits = ByHand([0.3, -0.2], 0.05, 1), ByHand([0.3, -0.2], 0.05, 1), ByHand([0.1] * 5, 0.02, 10)
    wrong = ByHand([0.1] * 5, 0.02, 10)
    for u, batch, safe in STEPS:
        rows, trusted = [ROWS[at] for at in batch], [SAFE[at] for at in safe]
        seen = both.step(u, trusted, rows, torch.tensor(batch))
        s = np.exp(logits.x) / np.exp(logits.x).sum()
        p = 5 * s[batch]
        lf, ls = losses_of(theta.x, rows), losses_of(theta.x, trusted)
        close(seen.rows, lf)
        close(seen.safe, ls)
        close(seen.weights, p)
        gap = lf - losses_of(hat.x, rows) if auxiliary else lf
        gradient = u * slopes_of(theta.x, trusted).mean(0)
        theta.step(gradient + (1 - u) * (p[:, None] * slopes_of(theta.x, rows)).mean(0))
        hat.step((p[:, None] * slopes_of(hat.x, rows)).mean(0))
        after = losses_of(theta.x, rows) - (losses_of(hat.x, rows) if auxiliary else 0)
        for selector, values in ((logits, gap), (wrong, after)):
            inside = np.zeros(5)
            inside[batch] = values / len(batch)
            selector.step(5 * s * (inside - (s[batch] * values).sum() / len(batch)))
        close([learner.trained["a"], learner.trained["b"]], theta.x)
        if auxiliary:
            close([beside.trained["a"], beside.trained["b"]], hat.x)
    close(weights.logits, logits.x)
    assert np.abs(logits.x - wrong.x).max() > 1e-4


def test_at_u_one_the_rows_never_touch_the_model():
    (_, with_rows), (_, alone) = line(), line()
    both = Bilevel(with_rows, RowWeights(5, "softmax", 0.02), Processes(cpu=True))
    for _, batch, safe in STEPS:
        trusted = [SAFE[at] for at in safe]
        both.step(1.0, trusted, [ROWS[at] for at in batch], torch.tensor(batch))
        alone.add(trusted, torch.full((len(trusted),), 1 / len(trusted), dtype=torch.float64))
        alone.step()
    assert all(torch.equal(with_rows.trained[name], alone.trained[name]) for name in ("a", "b"))


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_micro_batches_add_up_and_a_nan_adds_nothing(micro_batch):
    bad = (math.nan, 1.0)
    (model, learner), (other, beside) = line(micro_batch=micro_batch), line(micro_batch=5)
    shares = tensor(0.3, 0.2, 0.7, 0.1, 0.4)
    found = learner.add([ROWS[0], bad, *ROWS[1:3], bad], shares)
    beside.add(ROWS[:3], shares[[0, 2, 3]])
    assert torch.isnan(found).tolist() == [False, True, False, False, True]
    close([model.a.grad, model.b.grad], [other.a.grad.item(), other.b.grad.item()], 1e-15)


def test_a_model_that_has_diverged_stops_the_run():
    model, learner = line()
    both = Bilevel(learner, RowWeights(2, "softmax", 0.02), Processes(cpu=True))
    with torch.no_grad():
        model.a.fill_(math.nan)
    with pytest.raises(ModelError, match="diverged"):
        both.step(0.5, SAFE[:2], ROWS[:2], indices(0, 1))
    model, learner = line()
    learner.add([(1e200, 0.0)], tensor(1.0))  # the loss overflows, so it adds nothing
    learner.step()
    assert model.a.item() == 0.3
    model.a.grad = tensor(math.inf)[0]
    with pytest.raises(ModelError, match="gradient is not finite"):
        learner.step()
