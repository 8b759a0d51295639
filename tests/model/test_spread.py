"""A model over several devices: the same vectors, each block on its own, and only where no one device holds it.

There is no second device here. So devices are told apart by marks that tensors carry: a weight bears that of its
device, what is moved gets that of the place it goes to, and an operation on two of them is an error, as it is on GPUs.
"""

import logging
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from small_models import ARCHITECTURES, WITHOUT_FINAL_NORM, save_small_model
from token_rows import token_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_safefilter import EmbedLayers
from hf_safefilter.errors import ModelError
from hf_safefilter.model import fits, load, picks, readers, spread
from hf_safefilter.model.attention import Packed
from hf_safefilter.model.blocks import Stack
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.hooks import Reads
from hf_safefilter.model.load import ModelKey, resolve_revision, trunk
from hf_safefilter.model.prefix_tree import Layout
from hf_safefilter.step import ROWS_BY_BLOCKS, ROWS_PER_CALL

CPU, META = torch.device("cpu"), torch.device("meta")
FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)
LAYERS = (0, 1, 2, 3, 4)


class Devices(TorchDispatchMode):
    """Marks of devices, by the memory that tensors share."""

    def __init__(self):
        super().__init__()
        self.marks = {}

    def mark(self, tensor, device):
        storage = tensor.untyped_storage()
        self.marks[storage.data_ptr()] = device
        weakref.finalize(storage, self.marks.pop, storage.data_ptr(), None)
        return tensor

    def of(self, tensor):
        return self.marks.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        found = {device for tensor in tensors if (device := self.of(tensor)) is not None and tensor.dim()}
        assert len(found) <= 1, f"{operation} is called with tensors on {found}"
        result = operation(*args, **(kwargs or {}))
        if found:
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.numel():
                    self.mark(leaf, next(iter(found)))
        return result


def opened(folder, shares=None, monkeypatch=None, depth=4):
    load._trunks.clear()
    key = ModelKey(str(folder), resolve_revision(str(folder), None), "float32")
    if shares is None:
        return trunk(key, depth, CPU)
    monkeypatch.setattr(load, "placement", lambda *_: fits.Placement(shares=tuple(shares)))
    return trunk(key, depth, CPU, stream_blocks="auto", beside=(SECOND,))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_block_works_on_its_own_device(name, tmp_path, monkeypatch):
    folder, rows = save_small_model(tmp_path, name), token_rows()
    layers = LAYERS if name in WITHOUT_FINAL_NORM else (*LAYERS, "norm")
    alone = opened(folder)
    expected = read_layers(alone, rows, layers, token_budget=45)
    devices, moves = Devices(), []

    def to(tensor, device):
        moves.append(device)
        with torch.utils._python_dispatch._disable_current_modes():
            return devices.mark(tensor.clone(), device) if devices.of(tensor) not in (device, None) else tensor

    monkeypatch.setattr(spread, "to", to)
    held = opened(folder, [(FIRST, 3), (SECOND, 1)], monkeypatch)
    assert held.left_out is None and held.beside == (FIRST, SECOND)
    blocks = list(held.stack.blocks)
    for module in [held.model, *blocks[3:], *([held.stack.final_norm] if "norm" in layers else [])]:
        there = FIRST if module is held.model else SECOND
        for weight in (*module.parameters(), *module.buffers()):
            devices.mark(weight, there)
    with devices:
        found = read_layers(held, rows, layers, token_budget=45)
    assert {FIRST, SECOND} == set(moves)
    assert (held.packs, held.pads) == (alone.packs, alone.pads)  # no trial has failed
    for layer in layers:
        np.testing.assert_allclose(found[layer], expected[layer], rtol=0, atol=2e-6 * np.abs(expected[layer]).max())


def test_the_marks_notice_what_is_not_moved(tmp_path, monkeypatch):
    """The test above can fail."""
    held = opened(save_small_model(tmp_path), [(FIRST, 3), (SECOND, 1)], monkeypatch)
    devices = Devices()
    monkeypatch.setattr(spread, "to", lambda tensor, device: tensor)
    for block, there in zip(held.stack.blocks, (FIRST, FIRST, FIRST, SECOND), strict=True):
        for weight in block.parameters():
            devices.mark(weight, there)
    held.packs, held.pads = False, True
    with devices, pytest.raises(AssertionError, match="called with tensors on"):
        read_layers(held, token_rows(), LAYERS, token_budget=45)


def test_where_a_batch_is_read_follows_its_states():
    reads = Reads([np.array([0, 1]), np.array([2])], CPU)
    assert reads.mean(torch.ones(3, 4, device=META)).device == META
    assert reads.mean(torch.ones(3, 4)).tolist() == [[1] * 4] * 2  # and on the first one still
    rows = Packed(Layout.of([np.arange(5, dtype=np.int32)]))
    assert rows.whole(META).bounds[0].device == META and rows.whole(CPU).bounds[0].device == CPU
    assert rows.at(np.array([3]), META).gather.device == META


@pytest.mark.parametrize(
    ("count", "room", "shares"),
    [
        (4, [9, 9], [2, 2]),
        (5, [9, 9], [3, 2]),
        (7, [2, 9, 9], [2, 3, 2]),
        (6, [0, 3, 3], [0, 3, 3]),
        (7, [1, 3, 2], None),
        (1, [0], None),
    ],
)
def test_blocks_are_shared_out_evenly_where_there_is_room(count, room, shares):
    assert fits.even_shares(count, room) == shares


def test_a_model_is_spread_only_where_it_does_not_fit_on_one(tmp_path, monkeypatch, caplog):
    folder = save_small_model(tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModel.from_config(config)
    whole = 4 * sum(weight.numel() for weight in model.parameters())
    block = 4 * sum(weight.numel() for weight in model.layers[0].parameters())
    others = whole - 4 * block
    room = {}
    monkeypatch.setattr(fits, "memory_available", lambda device: int(room[device.index] / 0.9) + 9)

    def placed(*bytes_free):
        room.update(enumerate(bytes_free))
        return fits.place(
            "a model", config, "float32", [torch.device("cpu", at) for at in range(len(bytes_free))], None
        )

    assert placed(whole, 10 * whole) == fits.Placement()
    assert [count for _, count in placed(whole - 9999, whole).shares] == [2, 2]
    assert [count for _, count in placed(others + block, whole).shares] == [1, 3]
    assert [count for _, count in placed(others // 2, whole).shares] == [0, 4]
    assert "read from disk" not in caplog.text
    assert placed(others + block, 2 * block) == fits.Placement(streamed=True)
    assert placed(others + block) == fits.Placement(streamed=True)
    assert "each is read from disk once for many rows" in caplog.text


def test_it_is_loaded_as_it_was_placed_and_says_so(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    held = opened(save_small_model(tmp_path), [(CPU, 1), (SECOND, 3)], monkeypatch)
    assert held.beside == (SECOND,) and "1 on cpu, 3 on cpu:1" in caplog.text
    assert not any(weight.device.type == "meta" for weight in held.model.parameters())
    with pytest.raises(ModelError, match="3 blocks are loaded"):
        read_layers(opened(save_small_model(tmp_path), [(CPU, 1), (SECOND, 2)], monkeypatch, 3), token_rows(), [4])


def test_gpus_are_shared_only_where_none_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    names = {None: ["cuda:1", "cuda:2"], "cuda": ["cuda:1", "cuda:2"], "cuda:0": [], "cpu": []}
    for device, others in names.items():
        assert list(map(str, picks.spare_gpus(device, None))) == others
    assert picks.spare_gpus(None, 1) == ()  # each of several processes has one of its own


def test_what_comes_after_the_last_block_is_where_it_is():
    blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    loaded = []
    left_out = SimpleNamespace(
        stack=Stack("layers", blocks, torch.nn.LayerNorm(2), True),
        load=lambda number, device: loaded.append((number, device)),
        key=SimpleNamespace(model="a model"),
    )
    spread.spread(left_out, [(CPU, 1), (META, 2)])
    assert loaded == [(0, CPU), (1, META), (2, META)]
    assert left_out.stack.final_norm.weight.device == META


def test_a_step_spreads_its_model_over_the_gpus_that_are_spare(tmp_path, monkeypatch):
    folder, asked = str(save_small_model(tmp_path)), []

    def placement(key, depth, devices, stream_blocks):
        asked.append(devices)
        return fits.Placement(shares=tuple(zip(devices, (1, 2), strict=True)) if len(devices) > 1 else ())

    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "off")
    rows = [{"prompt": "a", "response": "one two three"}, {"prompt": "b", "response": "four"}]
    step = EmbedLayers(folder, layers=[1, 3])
    expected = step.vectors(rows)[0].vectors
    load._trunks.clear()
    monkeypatch.setattr(load, "placement", placement)
    monkeypatch.setattr(load, "spare_gpus", lambda device, rank: (SECOND,))
    found = step.vectors(rows)[0].vectors
    (held,) = load._trunks.values()
    assert held.beside == (SECOND,) and asked == [(CPU, SECOND)]
    assert all(np.allclose(found[layer], expected[layer], atol=1e-5) for layer in found)
    load._trunks.clear()
    monkeypatch.setattr(load, "_load_trunk", lambda *_: held)
    flex = SimpleNamespace(device=None, backend="transformers", attn="flex_attention", stream_blocks="auto")
    readers.reader(step._key(), (1,), 1, flex, None)
    assert asked[-1] == (CPU,)  # its masks know their device


def test_a_call_has_as_many_rows_as_one_gpu_alone_would_want(tmp_path, monkeypatch):
    step = EmbedLayers(str(save_small_model(tmp_path)), layers=[2])
    monkeypatch.setattr(load, "spare_gpus", lambda device, rank: (SECOND,) if rank is None else ())
    monkeypatch.setattr(load, "placement", lambda key, depth, devices, _: fits.Placement(streamed=len(devices) == 1))
    assert step.rows_per_call == ROWS_BY_BLOCKS
    monkeypatch.setattr(load, "placement", lambda *_: fits.Placement())
    assert step.rows_per_call == ROWS_PER_CALL


def test_a_shallower_trunk_is_let_go_before_room_is_sought(tmp_path, monkeypatch):
    folder = save_small_model(tmp_path)
    opened(folder, depth=2)
    held = []
    monkeypatch.setattr(load, "placement", lambda *_: held.append(len(load._trunks)) or fits.Placement())
    key = ModelKey(str(folder), resolve_revision(str(folder), None), "float32")
    assert trunk(key, 4, CPU).depth == 4 and held == [0]
