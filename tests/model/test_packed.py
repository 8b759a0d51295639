"""Rows that share beginnings are computed once, and read as if they had been computed alone."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import save_small_model

from hf_safefilter.model import attention, forward
from hf_safefilter.model.attention import Packed, Unfit
from hf_safefilter.model.budget import token_budget
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.load import ModelKey, resolve_revision, trunk
from hf_safefilter.model.packed import can_pack
from hf_safefilter.model.prefix_tree import Layout, grown, order
from hf_safefilter.model.windows import TokenSequence

CPU = torch.device("cpu")

HEAD = list(range(10, 30))
PROMPT = list(range(40, 55))


def row(ids, *reads):
    """Read where `reads` say; at its last token if they say nothing."""
    ids = np.asarray(ids, np.int32)
    return TokenSequence(ids, reads or ((len(ids) - 1, len(ids)),))


def family():
    """Rows with one head; three share a prompt too, one is the prompt alone, one is the beginning of another."""
    return [
        row([*HEAD, *PROMPT, 60, 61, 62, 63]),
        row([*HEAD, *PROMPT, 60, 70, 71]),
        row([*HEAD, *PROMPT, *range(80, 100)], (36, 50), (45, 55), (54, 55)),
        row([*HEAD, *PROMPT]),
        row([*HEAD, 5, 6, 7]),
        row([*HEAD, 5, 6, 7, 8, 9], (3, 22)),
        row([9, 9, 9]),
        row([*HEAD, 5, 6, 7], (0, 5), (4, 21)),
    ]


def tokens_of(segments, end):
    parts = []
    while end >= 0:
        parts.append(segments[end].ids)
        end = segments[end].parent
    return np.concatenate(parts[::-1]).tolist()


def test_the_tree_holds_every_row_and_shared_beginnings_once():
    rows = [tokens.ids for tokens in family()]
    rows = [rows[number] for number in order(rows)]
    segments, ends = grown(rows)
    assert [tokens_of(segments, end) for end in ends] == [ids.tolist() for ids in rows]
    held = sum(len(segment.ids) for segment in segments)
    # head and prompt once; short common ends ("60", "5 6 7") are not worth a segment of their own
    assert held == len(HEAD) + len(PROMPT) + 4 + 3 + 20 + 3 + 5 + 3
    for segment in segments:
        before = tokens_of(segments, segment.parent) if segment.parent >= 0 else []
        assert segment.depth == len(before)


def test_any_rows_grow_into_a_tree_that_holds_them():
    draw = np.random.default_rng(0)
    for _ in range(50):
        rows = [draw.integers(0, 2, draw.integers(1, 40)).astype(np.int32) for _ in range(12)]
        rows += [rows[0], np.concatenate([rows[1], rows[2]])]
        rows = [rows[number] for number in order(rows)]
        segments, ends = grown(rows)
        assert [tokens_of(segments, end) for end in ends] == [ids.tolist() for ids in rows]


def test_batches_hold_every_row_once_within_the_budget():
    lengths, done = [len(one.ids) for one in family()], 0
    while done < len(lengths):
        count = forward.PACKED.leading(lengths[done:], 60)
        assert count == 1 or sum(lengths[done : done + count]) <= 60
        assert done + count == len(lengths) or sum(lengths[done : done + count + 1]) > 60, "no less than fits"
        done += count
    assert done == len(lengths)


def opened(folder, depth=4):
    key = ModelKey(str(folder), resolve_revision(str(folder), None), "float32")
    return trunk(key, depth, torch.device("cpu"), plain=True)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "phi3", "gpt_neox", "opt"])
def small(request, tmp_path_factory):
    return opened(save_small_model(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture
def alone(monkeypatch):
    """Vectors of rows read one by one, the plain way."""

    def read(opened_trunk, tokens, layers):
        with monkeypatch.context() as patch:
            patch.setattr(forward, "can_pack", lambda trunk, longest: False)
            found = [read_layers(opened_trunk, [one], layers) for one in tokens]
        return {layer: np.concatenate([one[layer] for one in found]) for layer in layers}

    return read


def same(found, expected):
    for layer, vectors in expected.items():
        np.testing.assert_allclose(found[layer], vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [[0], [2], [4], [4, 0, "norm", 2], ["norm"]], ids=str)
def test_rows_of_a_family_read_as_they_do_alone(small, layers, alone):
    tokens = family()
    assert can_pack(small, 60)
    before = small.model.config._attn_implementation
    found = read_layers(small, tokens, layers)
    assert small.model.config._attn_implementation == before
    same(found, alone(small, tokens, layers))


def test_shared_tokens_are_computed_once(small):
    seen = []
    count = lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape)  # noqa: E731
    can_pack(small, 40)
    handle = small.stack.blocks[0].register_forward_pre_hook(count, with_kwargs=True)
    try:
        read_layers(small, [row([*HEAD, *PROMPT, n]) for n in range(10)], [2])
    finally:
        handle.remove()
    assert seen == [(1, len(HEAD) + len(PROMPT) + 10, 32)]


def test_what_cannot_be_packed_goes_the_plain_way(tmp_path):
    # a window of six tokens; attention with a cap; tokens that see those after them
    for name in ("mistral", "gemma2", "bert"):
        assert not can_pack(opened(save_small_model(tmp_path / name, name), 2), 40)


def test_rows_longer_than_the_window_go_the_plain_way(tmp_path, alone):
    small = opened(save_small_model(tmp_path, "mistral", sliding_window=50))
    assert can_pack(small, 50) and not can_pack(small, 51)
    tokens = [*family(), row(range(100, 160))]
    same(read_layers(small, tokens, [3]), alone(small, tokens, [3]))


def test_a_model_that_mixes_tokens_outside_attention_is_found_out(tmp_path, caplog, alone):
    small = opened(save_small_model(tmp_path, "llama"))

    def blur(_, args, out):
        return out + 0.3 * torch.nn.functional.pad(out, (0, 0, 1, 0))[:, :-1]  # each token the one before it

    handle = small.stack.blocks[1].register_forward_hook(blur)
    try:
        with caplog.at_level("INFO", "hf_safefilter.model.packed"):
            assert not can_pack(small, 40)
        assert "is read padded: packed rows differ by" in caplog.text
        same(read_layers(small, family(), [3]), alone(small, family(), [3]))
    finally:
        handle.remove()


def test_two_threads_read_one_model_one_after_the_other(small, alone):
    tokens, expected = family(), alone(small, family(), [3])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: read_layers(small, tokens, [3], token_budget=40), range(12)):
            same(found, expected)


# The kernel for GPUs, with its own definition in its place


def by_definition(query, key, value, bounds_q, bounds_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
    """Variable-length causal attention, the last query of a sequence aligned with its last key."""
    assert bounds_q.dtype == bounds_k.dtype == torch.int32 and window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    mixed = torch.empty_like(query)
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1).double() for part in (key, value))
    for at in range(len(bounds_q) - 1):
        (q0, q1), (k0, k1) = bounds_q[at : at + 2].tolist(), bounds_k[at : at + 2].tolist()
        assert q1 - q0 <= longest_q and k1 - k0 <= longest_k
        logits = torch.einsum("qhd,khd->hqk", query[q0:q1].double(), key[k0:k1]) * scale
        hidden = torch.arange(k1 - k0) > torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        mixed[q0:q1] = torch.einsum("hqk,khd->qhd", weights, value[k0:k1])
    return mixed


@pytest.mark.parametrize("layers", [[3], [4, "norm", 1]], ids=str)
@pytest.mark.parametrize("spans", [True, False])
def test_one_call_of_the_kernel_reads_the_same(small, layers, spans, alone, monkeypatch):
    calls = []

    def in_one_call(query, key, value, rows, scaling, only):
        sequences = rows.whole(query.device) if only is None else rows.at(only, query.device)
        calls.append(len(query))
        return attention._in_one_call(query, key, value, sequences, scaling)

    tokens = family() if spans else [row(one.ids) for one in family()]
    expected = alone(small, tokens, layers)
    assert can_pack(small, 60)
    monkeypatch.setattr(attention, "_by_segment", in_one_call)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_definition)
    same(read_layers(small, tokens, layers), expected)
    assert len(calls) == max(4 if layer == "norm" else layer for layer in layers), "once a block"


@pytest.mark.parametrize("only", [None, [3, 19, 20, 170, 171, 300]], ids=["all", "some"])
@pytest.mark.parametrize(("heads", "grouped"), [(4, 1), (4, 2), (8, 1), (8, 2), (8, 8)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str)
def test_segment_by_segment_each_token_sees_its_own_row(dtype, close, heads, grouped, only):
    draw = np.random.default_rng(0)
    tails = [draw.integers(100, 200, length).astype(np.int32) for length in (150, 64, 65, 20, 129)]
    rows = [np.concatenate([np.array(HEAD, np.int32), tail]) for tail in tails[:-1]] + tails[-1:]
    layout = Layout.of([rows[number] for number in order(rows)])
    packed = Packed(layout)
    drawn = torch.Generator().manual_seed(0)
    sizes = (heads, heads // grouped, heads // grouped)
    query, key, value = (torch.randn(len(layout.ids), each, 8, generator=drawn) for each in sizes)
    indices = np.arange(len(layout.ids)) if only is None else np.array(only)
    query, key, value = (part.to(dtype) for part in (query[indices], key, value))
    sequences = packed.whole(CPU) if only is None else packed.at(indices, CPU)
    expected = by_definition(
        query, key[sequences.gather], value[sequences.gather], *sequences.bounds, *sequences.longest,
        scale=0.3, window_size=(-1, 0), enable_gqa=grouped > 1,
    )  # fmt: skip
    output = attention.attend(query, key, value, packed, 0.3, None if only is None else indices)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=0, atol=close)


def test_heads_too_wide_for_the_kernel_are_refused():
    rows = Packed(Layout.of([np.arange(3, dtype=np.int32)]))
    with pytest.raises(Unfit, match="256 channels"):
        attention._in_one_call(*torch.zeros(3, 3, 2, 320), rows.whole(CPU), 1.0)


# Budgets


def stand_in(free, monkeypatch, hidden=4096, inner=14336, dtype=torch.bfloat16):
    config = SimpleNamespace(intermediate_size=inner)
    config.get_text_config = lambda: config
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
    return SimpleNamespace(
        model=SimpleNamespace(config=config, dtype=dtype),
        hidden_size=hidden,
        device=torch.device("cuda", 0),
        beside=(),
        token_budget=None,
    )


def test_a_gpu_s_budget_comes_from_its_free_memory(monkeypatch):
    plenty = stand_in(60e9, monkeypatch)
    assert token_budget(plenty, packed=True) == 32768
    scarce = stand_in(2e9, monkeypatch)
    assert 1000 < token_budget(scarce, packed=True) < 10_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("asked twice"))
    assert token_budget(scarce, packed=True) == scarce.token_budget


def test_the_fullest_of_several_gpus_decides(monkeypatch):
    spread, alone = (stand_in(60e9, monkeypatch) for _ in range(2))
    spread.beside = (torch.device("cuda", 1),)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((60e9, 1e9)[device.index], 80e9))
    assert token_budget(spread, packed=True) < 10_000 < token_budget(alone, packed=True)


def test_vectors_wait_on_the_device_until_they_are_many():
    batches = [([at], {1: torch.full((1, 4), float(at))}) for at in range(5)]
    found = list(forward._fetched(iter(batches), 2 * 16))
    assert [numbers for numbers, _ in found] == [[0, 1], [2, 3], [4]]
    assert [vectors[1][:, 0].tolist() for _, vectors in found] == [[0, 1], [2, 3], [4]]
    assert [numbers for numbers, _ in forward._fetched(iter(batches), 0)] == [[0], [1], [2], [3], [4]]
