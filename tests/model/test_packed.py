"""Rows that share beginnings are computed once, and read as if they had been computed alone."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import save_small_model

from hf_safefilter.model import forward
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.load import ModelKey, resolve_revision, trunk
from hf_safefilter.model.packed import batches, can_pack, grown, order

HEAD = list(range(10, 30))
PROMPT = list(range(40, 55))


def row(ids, start=None, stop=None):
    ids = np.asarray(ids, np.int32)
    stop = len(ids) if stop is None else stop
    return SimpleNamespace(ids=ids, start=stop - 1 if start is None else start, stop=stop, truncated=False, reason="")


def family():
    """Rows with one head; three share a prompt too, one is the prompt alone, one is the beginning of another."""
    return [
        row([*HEAD, *PROMPT, 60, 61, 62, 63]),
        row([*HEAD, *PROMPT, 60, 70, 71]),
        row([*HEAD, *PROMPT, *range(80, 100)], 36, 50),
        row([*HEAD, *PROMPT]),
        row([*HEAD, 5, 6, 7]),
        row([*HEAD, 5, 6, 7, 8, 9], 3, 22),
        row([9, 9, 9]),
        row([*HEAD, 5, 6, 7], 0, 5),
    ]


def tokens_of(pieces, end):
    parts = []
    while end >= 0:
        parts.append(pieces[end].ids)
        end = pieces[end].parent
    return np.concatenate(parts[::-1]).tolist()


def test_the_tree_holds_every_row_and_shared_beginnings_once():
    rows = [one.ids for one in family()]
    rows = [rows[place] for place in order(rows)]
    pieces, ends = grown(rows)
    assert [tokens_of(pieces, end) for end in ends] == [one.tolist() for one in rows]
    held = sum(len(piece.ids) for piece in pieces)
    # head and prompt once; short common ends ("60", "5 6 7") are not worth a piece of their own
    assert held == len(HEAD) + len(PROMPT) + 4 + 3 + 20 + 3 + 5 + 3
    for piece in pieces:
        before = tokens_of(pieces, piece.parent) if piece.parent >= 0 else []
        assert piece.depth == len(before)


def test_any_rows_grow_into_a_tree_that_holds_them():
    draw = np.random.default_rng(0)
    for _ in range(50):
        rows = [draw.integers(0, 2, draw.integers(1, 40)).astype(np.int32) for _ in range(12)]
        rows += [rows[0], np.concatenate([rows[1], rows[2]])]
        rows = [rows[place] for place in order(rows)]
        pieces, ends = grown(rows)
        assert [tokens_of(pieces, end) for end in ends] == [one.tolist() for one in rows]


def test_batches_hold_every_row_once_within_the_budget():
    rows = [one.ids for one in family()]
    found = list(batches(rows, 60))
    assert sorted(place for batch in found for place in batch) == list(range(len(rows)))
    assert all(len(batch) == 1 or sum(len(rows[place]) for place in batch) <= 60 for batch in found)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def small(request, tmp_path_factory):
    folder = save_small_model(tmp_path_factory.mktemp(request.param), request.param)
    key = ModelKey(str(folder), resolve_revision(str(folder), None), "float32")
    return trunk(key, 4, torch.device("cpu"), plain=True)


@pytest.mark.parametrize("layers", [[0], [2], [4], [4, 0, "norm", 2]], ids=str)
def test_rows_of_a_family_read_as_they_do_alone(small, layers, monkeypatch):
    tokens = family()
    assert can_pack(small, 60)
    found = read_layers(small, tokens, layers)
    monkeypatch.setattr(forward, "can_pack", lambda trunk, longest: False)
    alone = [read_layers(small, [one], layers) for one in tokens]
    for layer in layers:
        expected = np.concatenate([one[layer] for one in alone])
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-5)


def test_shared_tokens_are_computed_once(small):
    seen = []
    handle = small.stack.blocks[0].self_attn.k_proj.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    try:
        read_layers(small, [row([*HEAD, *PROMPT, n]) for n in range(10)], [2])
    finally:
        handle.remove()
    assert seen == [len(HEAD) + len(PROMPT) + 10]


def test_what_cannot_be_packed_goes_the_plain_way(tmp_path):
    for name in ("mistral", "gemma2", "gpt_neox"):  # a window of six tokens; other blocks
        folder = save_small_model(tmp_path / name, name)
        opened = trunk(ModelKey(str(folder), resolve_revision(str(folder), None), "float32"), 2, torch.device("cpu"))
        assert not can_pack(opened, 40)
    assert can_pack(trunk(ModelKey("toy", resolve_revision("toy", None), "float32"), 2, torch.device("cpu")), 40)
