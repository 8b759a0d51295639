"""The projected form: signs that follow from a seed everywhere, and an estimate that is near."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from small import by_definition, flat_gradient, made_up, small

from hf_safefilter.scores.gradient import row_scores as measure
from hf_safefilter.scores.gradient.meters import Projected
from hf_safefilter.scores.gradient.parts import Parts
from hf_safefilter.scores.gradient.projection import BLOCK, project, project_tokens, signs
from hf_safefilter.scores.gradient.single_row import measure_row

CPU = torch.device("cpu")
DIGEST = """
import hashlib, torch
from hf_safefilter.scores.gradient.projection import signs
drawn = [signs(3, name, block, 128, torch.device("cpu")) for name in ("a.weight", "b") for block in (0, 7)]
print(hashlib.sha256(torch.stack(drawn).to(torch.int8).numpy().tobytes()).hexdigest())
"""


def reference_signs(seed: int, name: str, block: int, width: int) -> np.ndarray:
    """The same by Python's own whole numbers."""
    import hashlib

    start = int.from_bytes(hashlib.sha256(f"{seed}\0{name}\0{block}".encode()).digest()[:8], "big")
    found = []
    for count in range(1, BLOCK * width // 64 + 1):
        word = (start + count * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        word ^= word >> 31
        found += [1 - 2 * (word >> place & 1) for place in range(64)]
    return np.array(found).reshape(BLOCK, width)


def test_signs_follow_from_whole_numbers_alone():
    np.testing.assert_array_equal(signs(3, "layers.0.weight", 5, 64, CPU), reference_signs(3, "layers.0.weight", 5, 64))


def test_signs_are_the_same_in_every_process():
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1] and len(digests[0].strip()) == 64


def test_signs_are_fair_and_differ():
    one, other = signs(0, "a", 0, 1024, CPU), signs(0, "a", 1, 1024, CPU)
    assert set(one.unique().tolist()) == {-1.0, 1.0}
    size = one.numel() ** 0.5
    assert abs(one.sum()) < 5 * size and abs((one * other).sum()) < 5 * size
    assert abs((one[:-1] * one[1:]).sum()) < 5 * size and abs((one[:, :-1] * one[:, 1:]).sum()) < 5 * size
    for changed in (signs(1, "a", 0, 1024, CPU), signs(0, "b", 0, 1024, CPU)):
        assert abs((one * changed).sum()) < 5 * size


def test_tokens_draw_the_same_signs_as_the_whole_embedding():
    summed, rows, tokens = torch.randn(4, 24), torch.tensor([0, 0, 1, 1]), torch.tensor([3, 41, 0, 41])
    whole = torch.zeros(2, 50, 24)
    whole[rows, tokens] = summed
    found = project_tokens(summed, rows, tokens, 2, 9, "embedding", 128)
    torch.testing.assert_close(found, project(whole.flatten(1), 9, "embedding", 128))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_rows_together_are_projected_as_rows_alone(name):
    tuned = small(name, dtype=torch.float32, tie_word_embeddings=True)
    examples = made_up((9, 4, 14))
    rules = measure.fast_rules(tuned)
    together, alone = (Projected(1, 64, 3, None, CPU) for _ in range(2))
    with measure.hooked(rules):
        measure.measure_rows(tuned, rules, examples, together)
    for row, example in enumerate(examples):
        measure_row(tuned, example, alone, row)
    torch.testing.assert_close(together.sums, alone.sums, rtol=1e-4, atol=1e-4 * float(alone.sums.abs().max()))


def test_the_estimate_is_near_the_exact_score():
    tuned = small("llama", Parts("last_blocks"), dtype=torch.float32)
    examples = made_up((9, 4, 14, 9, 22, 30))
    toward, away = flat_gradient(tuned, examples[0]), flat_gradient(tuned, examples[1])
    whole = toward / toward.norm() - away / away.norm()
    anchor, start = {}, 0
    for name, one in tuned.parameters.items():
        anchor[name] = whole[start : start + one.numel()].view_as(one)
        start += one.numel()
    exact = by_definition(tuned, examples, anchor)
    width = 4096
    sums = Projected(0, width, 2, None, CPU)
    for row in range(2):
        measure_row(tuned, examples[row], sums, row)
    units = sums.sums / sums.sums.norm(dim=1, keepdim=True)
    found, _ = measure.measure(tuned, examples, lambda rows: Projected(0, width, rows, units[0] - units[1], CPU))
    assert np.abs(found - exact).max() < 4 / width**0.5
    assert np.corrcoef(found, exact)[0, 1] > 0.99
