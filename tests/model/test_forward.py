"""What is read is what transformers computes, row by row, whatever the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr
from small_models import ARCHITECTURES, WITHOUT_FINAL_NORM, save_small_model

from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.model import forward, linears, load
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.hooks import Reads
from hf_safefilter.model.last_block import can_read_positions
from hf_safefilter.model.load import ModelKey, resolve_revision, trunk
from hf_safefilter.model.padded import read_padded
from hf_safefilter.model.windows import TokenSequence

CPU = torch.device("cpu")
LENGTHS = (3, 17, 40, 1, 9, 17)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices run fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    load._trunks.clear()


def sequence(ids, *reads):
    """Read where `reads` say; at its last token if they say nothing."""
    ids = np.asarray(ids, np.int32)
    return TokenSequence(ids, reads or ((len(ids) - 1, len(ids)),))


def sequences(seed=0, lengths=LENGTHS):
    """Random ones; some are read at the last token, one over a span, one in windows and twice at one token."""
    random = np.random.default_rng(seed)
    made = [sequence(random.integers(7, 320, length)) for length in lengths]
    made[1].reads = ((4, len(made[1].ids)),)
    made[2].reads = ((10, 11), (11, 30), (26, len(made[2].ids)), (10, 11))
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save_small_model(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


@pytest.fixture
def padded(monkeypatch):
    """The plain way, which every model can go; called with a reading, that one is in its place."""
    monkeypatch.setattr(forward, "can_pack", lambda trunk, longest: False)
    return lambda read: monkeypatch.setattr(forward, "PADDED", replace(forward.PADDED, read=read))


def opened(folder, depth=4, dtype="float32", plain=True):
    return trunk(ModelKey(str(folder), resolve_revision(str(folder), None), dtype), depth, CPU, plain=plain)


def one_by_one(folder, tokens, layers):
    """The same vectors from transformers' own `output_hidden_states`, one unpadded sequence at a time, whole model."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = getattr(model, "language_model", model)
    model.config.tie_last_hidden_states = False
    vectors = {layer: [] for layer in layers}
    for item in tokens:
        with torch.no_grad():
            output = model(torch.tensor(item.ids).long()[None], output_hidden_states=True)
        for layer in layers:
            states = output.last_hidden_state if layer == "norm" else output.hidden_states[layer]
            vectors[layer] += [states[0, start:stop].mean(0).numpy() for start, stop in item.reads]
    return {layer: np.array(found) for layer, found in vectors.items()}


@pytest.mark.parametrize("way", ["padded", None])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_what_transformers_computes_row_by_row(name, way, folders, request):
    if way:
        request.getfixturevalue(way)
    layers = [0, 1, 2, 3, 4] + ([] if name in WITHOUT_FINAL_NORM else ["norm"])
    tokens = sequences()
    expected = one_by_one(folders(name), tokens, layers)
    found = read_layers(opened(folders(name)), tokens, layers)
    for layer in layers:
        assert found[layer].dtype == np.float32
        np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-4, atol=1e-5, err_msg=f"layer {layer}")
    if "norm" in layers:
        assert np.abs(found["norm"] - found[4]).max() > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_truncated_model_reads_the_same(name, folders):
    tokens = sequences(1)
    load._trunks.clear()
    cut = read_layers(opened(folders(name), depth=2), tokens, [2, 0])
    expected = one_by_one(folders(name), tokens, [0, 2])
    for layer in (0, 2):
        np.testing.assert_allclose(cut[layer], expected[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [[1], [3], [4], [1, 0], [2, 1, 0], [4, "norm"]], ids=str)
@pytest.mark.parametrize("way", ["padded", None])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_position_a_row_reads_the_same(name, way, layers, folders, request):
    if way:
        request.getfixturevalue(way)
    if "norm" in layers and name in WITHOUT_FINAL_NORM:
        layers = [4]
    random = np.random.default_rng(6)
    tokens = [sequence(random.integers(7, 320, length)) for length in LENGTHS]
    tokens[2].reads = ((11, 12),)
    expected = one_by_one(folders(name), tokens, layers)
    found = read_layers(opened(folders(name)), tokens, layers, token_budget=1000)
    for layer in layers:
        np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_the_deepest_block_computes_the_read_positions_only(name, folders):
    tokens = [sequence([9, 8, 7, 11]), sequence([5, 8])]
    opened_trunk = opened(folders(name))
    assert forward.can_pack(opened_trunk, 4)
    shapes = []
    handle = opened_trunk.stack.blocks[2].mlp.register_forward_hook(lambda _, args, output: shapes.append(output.shape))
    try:
        read_layers(opened_trunk, tokens, [3])
        read_layers(opened_trunk, tokens, [4])
    finally:
        handle.remove()
    assert shapes == [(2, 32), (1, 6, 32)], "as the deepest block, and as one of those below"


def test_only_known_blocks_are_computed_at_one_position(folders):
    known = {name for name in ARCHITECTURES if can_read_positions(opened(folders(name)).stack.blocks[0])}
    assert known == {"llama", "mistral", "qwen2", "qwen3"}


def test_only_causal_stacks_go_without_a_mask(folders):
    causal = {name for name in ARCHITECTURES if opened(folders(name)).stack.causal}
    assert set(ARCHITECTURES) - causal == {"bert", "roberta"}


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "bert"])
def test_a_deep_trunk_stops_early_and_leaves_no_hooks(name, folders, padded):
    opened_trunk = opened(folders(name))
    read_layers(opened_trunk, sequences(), [1, 2])  # the trial of padded rows, which runs all blocks, is over now
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, at=at: ran.append(at))
        for at, block in enumerate(opened_trunk.stack.blocks)
    ]
    try:
        read_layers(opened_trunk, sequences(), [1, 2])
    finally:
        for handle in handles:
            handle.remove()
    assert set(ran) == {0, 1}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in opened_trunk.model.modules())


@pytest.mark.parametrize("name", ["llama", "opt", "roberta"])
def test_the_batch_does_not_matter(name, folders):
    tokens = sequences(2)
    alone = read_layers(opened(folders(name)), tokens, [3], token_budget=1)
    for budget in (20, 64, 10_000):
        together = read_layers(opened(folders(name)), tokens, [3], token_budget=budget)
        np.testing.assert_allclose(together[3], alone[3], rtol=1e-4, atol=1e-5)
    backwards = read_layers(opened(folders(name)), tokens[::-1], [3])
    places = np.split(np.arange(len(alone[3])), np.cumsum([len(one.reads) for one in tokens])[:-1])
    np.testing.assert_allclose(backwards[3], alone[3][np.concatenate(places[::-1])], rtol=1e-4, atol=1e-5)


def test_batches_keep_to_the_budget(folders, padded):
    shapes = []
    run = read_padded
    padded(lambda t, batch, layers: shapes.append([len(item.ids) for item in batch]) or run(t, batch, layers))
    read_layers(opened(folders("llama")), sequences(), [1], token_budget=40)
    assert shapes == [[40], [17, 17], [9, 3, 1]]


def test_equal_rows_are_computed_once(folders, padded):
    counted = []
    run = read_padded
    padded(lambda t, batch, layers: counted.extend(batch) or run(t, batch, layers))
    tokens = [
        sequence([9, 8, 7]),
        sequence([9, 8]),
        sequence([9, 8, 7]),
        sequence([9, 8, 7], (0, 1)),
        sequence([9, 8, 7]),
    ]
    found = read_layers(opened(folders("llama")), tokens, [2])[2]
    assert len(counted) == 3
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[0], found[4])
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[0], found[3])


def test_equal_sequences_with_several_reads_get_equal_vectors_in_their_own_places(folders):
    reads = (0, 2), (1, 3), (2, 3)
    tokens = [sequence([9, 8, 7], *reads), sequence([5, 6]), sequence([9, 8, 7], *reads)]
    found = read_layers(opened(folders("llama")), tokens, [2])[2]
    expected = [read_layers(opened(folders("llama")), [one], [2])[2] for one in tokens]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-5)
    assert np.array_equal(found[:3], found[4:])


def test_a_read_is_the_mean_of_the_reads_of_its_tokens(folders):
    ids = np.random.default_rng(7).integers(7, 320, 30)
    spread = [(at, at + 1) for at in range(5, 25)]
    found = read_layers(opened(folders("llama")), [sequence(ids, (5, 25), (5, 12), *spread)], [0, 3])
    for vectors in found.values():
        np.testing.assert_allclose(vectors[0], vectors[2:].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(vectors[1], vectors[2:9].mean(0), rtol=1e-4, atol=1e-5)


def test_no_sequences_at_all(folders):
    assert read_layers(opened(folders("llama")), [], [1])[1].shape == (0, 32)


@pytest.mark.parametrize("name", WITHOUT_FINAL_NORM)
def test_a_model_that_ends_without_a_norm_says_so(name, folders):
    with pytest.raises(ModelError, match="use layer 4 instead"):
        read_layers(opened(folders(name)), sequences(), ["norm"])


def test_a_layer_that_is_not_there(folders):
    with pytest.raises(OptionError, match="from 0 to 4"):
        read_layers(opened(folders("llama")), sequences(), [5])
    load._trunks.clear()
    with pytest.raises(ModelError, match="load a deeper trunk"):
        read_layers(opened(folders("llama"), depth=2), sequences(), [3])


def test_bfloat16_keeps_the_order_of_rows(folders):
    tokens = sequences(3, lengths=[*range(31, 71)])
    exact = read_layers(opened(folders("llama")), tokens, [3])[3]
    rough = read_layers(opened(folders("llama"), dtype="bfloat16"), tokens, [3])[3]
    assert rough.dtype == np.float32 and not np.array_equal(exact, rough)
    direction = np.random.default_rng(0).standard_normal(32)
    assert spearmanr(exact @ direction, rough @ direction).statistic > 0.998
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > 0.999


def test_the_mean_is_taken_in_float32():
    states = torch.full((1, 4096, 2), 1.0, dtype=torch.bfloat16)
    states[0, :, 1] = torch.linspace(-1, 3, 4096).bfloat16()
    expected = states.double().mean(1)
    found = Reads([np.arange(4096)], CPU).mean(states)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


# Memory


def out_of_memory_above(tokens_that_fit, run, calls):
    def fake(opened_trunk, batch, layers):
        held = len(batch) * max(len(item.ids) for item in batch)
        calls.append(held)
        if held > tokens_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory (as a test has it)")
        return run(opened_trunk, batch, layers)

    return fake


def test_out_of_memory_halves_the_budget_and_goes_on(folders, caplog, padded):
    tokens, opened_trunk = sequences(4, lengths=[16] * 3 + [15] * 13), opened(folders("llama"))
    tokens[2].reads = ((1, 5),)
    expected = read_layers(opened_trunk, tokens, [2])
    calls = []
    padded(out_of_memory_above(70, read_padded, calls))
    found = read_layers(opened_trunk, tokens, [2])
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-5)
    assert calls[:3] == [256, 128, 64] and max(calls[2:]) <= 64
    assert opened_trunk.token_budget == 64 and "at most 64 tokens" in caplog.text
    calls.clear()
    read_layers(opened_trunk, tokens, [2])
    assert max(calls) <= 64, "what fitted is remembered"


def test_a_row_too_long_for_the_memory_is_named(folders, padded):
    load._trunks.clear()
    padded(out_of_memory_above(30, read_padded, []))
    with pytest.raises(ModelError, match="a single row of 40 tokens"):
        read_layers(opened(folders("llama")), sequences(), [2])


# Prepacked linear layers


needs_onednn = pytest.mark.skipif(
    not linears._possible(torch.nn.Linear(8, 8)), reason="this build of torch has no oneDNN linear layers"
)


@needs_onednn
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prepacked_linear_layers_give_the_same(name, folders):
    tokens = sequences(5)
    load._trunks.clear()
    expected = read_layers(opened(folders(name)), tokens, [4])
    linears.prepack(opened(folders(name)).model)
    assert any(isinstance(m, linears.PrepackedLinear) for m in opened(folders(name)).model.modules())
    np.testing.assert_allclose(read_layers(opened(folders(name)), tokens, [4])[4], expected[4], rtol=1e-4, atol=1e-5)
    load._trunks.clear()


def test_a_processor_that_cannot_lay_weights_out_keeps_the_default(monkeypatch):
    def refuse(*_):
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(linears, "PrepackedLinear", refuse)
    assert linears._pays(torch.nn.Linear(8, 8)) is False


@needs_onednn
@pytest.mark.parametrize("gain", [0.9, 3.0])
def test_prepacking_is_decided_by_measurement(gain, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path))
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU(), torch.nn.Linear(300, 4))
    monkeypatch.setattr(linears, "_gain", lambda default, packed: gain)
    assert linears.prepack_if_faster(model) is (gain > 1)
    assert isinstance(model[0], linears.PrepackedLinear) is isinstance(model[2], linears.PrepackedLinear) is (gain > 1)
    monkeypatch.setattr(linears, "_gain", lambda default, packed: pytest.fail("measured twice"))
    again = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 4))
    assert linears.prepack_if_faster(again) is (gain > 1)


def test_small_models_are_left_as_they_are():
    model = torch.nn.Sequential(torch.nn.Linear(32, 32))
    assert not linears.prepack_if_faster(model) and type(model[0]) is torch.nn.Linear
    assert not linears.prepack_if_faster(torch.nn.ReLU())
