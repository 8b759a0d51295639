"""A plan's operations are those that torch counts; its times, bytes and prices follow from them by hand."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict, load_from_disk
from small_models import _LLAMA, ARCHITECTURES, WITHOUT_FINAL_NORM, _build, save_small_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_safefilter import cache, plan
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import DataError, ModelError, OptionError
from hf_safefilter.model import forward, load
from hf_safefilter.model.reading_options import ReadingOptions
from hf_safefilter.plan.devices import DEVICES, Device, device_named, measured, this_cpu, this_device
from hf_safefilter.plan.estimate import duration, make_plan, size
from hf_safefilter.plan.lengths import Lengths, sample_lengths, spread_sample
from hf_safefilter.plan.work import count_work, read_config
from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.toy import toy_model_path
from hf_safefilter.toy.corpus import mixed_rows

TOKENS = 37
EXPERTS = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"shared_expert_intermediate_size": 24},
    "DeepseekV3": {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1}
    | {"first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
    | {"v_head_dim": 12, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def counted(config, tokens=TOKENS, **options):
    """Operations of one row through the whole stack, by torch's own counter."""
    text = config.get_text_config()
    model = transformers.AutoModel.from_config(text, attn_implementation="eager", **options).eval()
    if hasattr(model, "pooler"):
        model.pooler = None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(1, 300, (1, tokens)))
    return counter.get_total_flops(), sum(p.numel() for p in model.parameters())


# Operations


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "opt_post_norm"])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_operations_are_those_that_torch_counts(name, tokens):
    """All blocks at every token; grouped queries, fused and gated projections, windows, encoders."""
    config = _build(*ARCHITECTURES[name]).config
    work = count_work(config, ["norm" if name not in WITHOUT_FINAL_NORM else 4], "mean")
    flops, weights = counted(config, tokens)
    assert work.flops(tokens, tokens**2) == flops
    assert work.weights == weights or name in ("bert", "roberta")  # which keep a pooler that is never run


@pytest.mark.parametrize("prefix", EXPERTS)
def test_a_token_is_sent_to_some_experts_only(prefix):
    config = getattr(transformers, f"{prefix}Config")(**(_LLAMA | EXPERTS[prefix]))
    work = count_work(config, [4], "mean")
    assert work.flops(TOKENS, TOKENS**2) == counted(config, experts_implementation="eager")[0]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_blocks_below_the_layer_are_all_that_count(depth):
    config = _build(*ARCHITECTURES["llama"]).config
    short = transformers.LlamaConfig(**(_LLAMA | {"num_hidden_layers": depth}))
    work = count_work(config, [depth], "mean")
    flops, weights = counted(short)
    assert (work.blocks, work.flops(TOKENS, TOKENS**2), work.weights) == (depth, flops, weights)
    assert count_work(config, [0, depth] if depth else [0], "mean").per_token == work.per_token


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_deepest_block_at_the_read_position_alone(name):
    from hf_safefilter.model.attention import Packed
    from hf_safefilter.model.last_block import at_positions
    from hf_safefilter.model.prefix_tree import Layout

    config = _build(*ARCHITECTURES[name]).config
    model = transformers.AutoModel.from_config(config).eval()
    states = torch.randn(1, TOKENS, 32)
    rows = Packed(Layout.of([np.arange(TOKENS, dtype=np.int32)]))
    rotary = model.rotary_emb(states, torch.arange(TOKENS)[None])
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        at_positions(model.layers[0], states[0], rotary, rows, np.array([TOKENS - 1]))
    work = count_work(config, [1])
    assert work.flops(TOKENS, TOKENS**2) == counter.get_total_flops()
    assert work.per_pair == 0 and work.per_read > 0


def test_a_whole_deepest_block_where_it_must_be_whole():
    config = _build(*ARCHITECTURES["llama"]).config
    whole = count_work(config, [4], "mean").flops(TOKENS, TOKENS**2)
    assert count_work(config, [4]).flops(TOKENS, TOKENS**2) < 0.9 * whole
    assert count_work(config, ["norm"]) == count_work(config, [4])
    phi3 = _build(*ARCHITECTURES["phi3"]).config
    assert count_work(phi3, [4]) == count_work(phi3, [4], "mean")


def test_published_sizes():
    """An 8B Llama, layer 13 of 32: 13 blocks of 218M weights, 2 x 13 x 218M = 5.7 GFLOP a token."""
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, dtype="bfloat16",
    )  # fmt: skip
    work = count_work(config, [13], "mean")
    assert work.per_token == 13 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) == 13 * 218_103_808
    assert 2 * work.per_token == pytest.approx(5.67e9, rel=1e-3)
    norms = 13 * 2 * 4096 + 4096
    assert work.weights == 128256 * 4096 + 13 * 218_103_808 + norms and work.stored_bytes == 2
    assert count_work(config, [32], "mean").weights == 7_504_924_672  # of 8.03B: without the head


def test_nothing_is_loaded(tmp_path, monkeypatch):
    folder = save_small_model(tmp_path)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr(load, "_load", lambda *_, **__: pytest.fail("weights were read"))
    work = count_work(read_config(str(folder)), [2])
    assert work.blocks == 2 and work.n_blocks == 4
    assert sample_lengths(Dataset.from_list(mixed_rows(9, 0.2, 3)), ReadingOptions(str(folder))).sampled == 9


def test_what_cannot_be_counted(tmp_path):
    config = _build(*ARCHITECTURES["llama"]).config
    with pytest.raises(OptionError, match="layers 0 .* to 4"):
        count_work(config, [9])
    with pytest.raises(ModelError, match="nowhere"):
        read_config(str(tmp_path / "nowhere"))
    mixtral = transformers.MixtralConfig(**(_LLAMA | EXPERTS["Mixtral"]))
    mixtral.num_experts_per_tok = 0
    with pytest.raises(ModelError, match="how many experts"):
        count_work(mixtral, [1])


# Bytes


def test_columns_and_cache_take_the_disk_that_was_said(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.SWITCH, "on")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    rows = Dataset.from_list(
        [{"prompt": row["prompt"], "response": row["response"]} for row in mixed_rows(800, 0.1, 1)]
    )
    step = EmbedLayers("toy", layers=[1, 2], window=None)  # one vector a row
    embedded = rows.map(step, batched=True)
    cache.flush()
    work = count_work(read_config("toy"), [1, 2], "mean")
    save_rows(embedded, tmp_path / "with", [step], name="rows", revision="none")
    save_rows(rows, tmp_path / "without", [], name="rows", revision="none")
    grown = [sum(p.stat().st_size for p in (tmp_path / name).glob("*.arrow")) for name in ("with", "without")]
    assert grown[0] - grown[1] == pytest.approx(800 * work.column_bytes(), rel=0.02)
    kept = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.arrow"))
    assert kept == pytest.approx(800 * work.cache_bytes(), rel=0.02)
    assert len(load_from_disk(tmp_path / "with")) == 800


# Lengths


@pytest.fixture
def read_tokens(monkeypatch):
    """Lengths of the sequences that the model reads, as they go into it."""
    lengths = []
    real = forward.read_layers

    def recorded(trunk, sequences, *rest):
        lengths.extend(len(sequence.ids) for sequence in sequences)
        return real(trunk, sequences, *rest)

    monkeypatch.setattr(forward, "read_layers", recorded)
    return lengths


@pytest.mark.parametrize("too_long", ["windows", "cut", "drop"])
def test_lengths_are_those_of_the_rows_that_are_read(read_tokens, too_long):
    rows = Dataset.from_list([{"prompt": "Tell me.", "response": "again " * n} for n in range(1, 400, 7)])
    reading = ReadingOptions("toy", max_length=200, too_long=too_long)
    sampled = sample_lengths(rows, reading)
    EmbedLayers.of(reading, [1]).vectors(rows)
    tokens = np.array(read_tokens, float)
    assert (sampled.rows, sampled.sampled) == (len(rows), len(rows))
    assert sampled.mean == pytest.approx(tokens.sum() / len(rows))
    assert sampled.squared == pytest.approx((tokens**2).sum() / len(rows))
    assert tokens.max() <= 200 and (len(tokens) > len(rows)) == (too_long == "windows")


def test_both_sides_of_a_preference_pair_are_counted(read_tokens):
    pair = {"prompt": "Tell me.", "chosen": "again " * 30, "rejected": "never " * 50}
    sampled = sample_lengths(Dataset.from_list([pair]), ReadingOptions("toy"))
    EmbedLayers("toy", [1]).vectors([pair])
    assert len(read_tokens) == 2
    assert (sampled.mean, sampled.squared) == (sum(read_tokens), sum(count**2 for count in read_tokens))


def test_a_tokenizer_may_allow_less_than_the_model(tmp_path):
    folder = shutil.copytree(toy_model_path(), tmp_path / "model")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 100}))
    rows = Dataset.from_list([{"prompt": "Tell me.", "response": "again " * 300}])
    assert (
        sample_lengths(rows, ReadingOptions(str(folder), too_long="cut")).mean
        == 100
        == load.max_tokens(EmbedLayers(str(folder), [1])._key())
    )


def test_a_large_set_is_sampled_and_always_alike():
    table = Dataset.from_dict({"text": [f"row {n}" for n in range(5000)]})
    both = DatasetDict(train=table.select(range(4000)), test=table.select(range(4000, 5000)))
    sample = spread_sample(table)["text"][:]
    assert len(sample) == len(set(sample)) == 512 and sample == spread_sample(both)["text"][:]
    assert sample_lengths(both, ReadingOptions("toy")).rows == 5000


def test_rows_that_cannot_be_read():
    with pytest.raises(DataError, match="no row of the sample"):
        sample_lengths(Dataset.from_list([{"prompt": "", "response": ""}] * 3), ReadingOptions("toy"))
    for numbers, name in (((0, 100), "num_rows=0"), ((5, 0), "mean_tokens=0"), ((5, float("nan")), "mean_tokens=nan")):
        with pytest.raises(OptionError, match=name):
            Lengths.uniform(*numbers)


# Devices, time and cost


def test_devices_by_name_and_number():
    assert device_named("8xA100") == (8, DEVICES["a100"]) and device_named("h100") == (1, DEVICES["h100"])
    assert DEVICES["h100"].peak("bfloat16") == 989e12 and DEVICES["h100"].peak("float32") == 67e12
    for wrong in ("abacus", "0xh100", "xh100", "", "h100x8"):
        with pytest.raises(OptionError, match="is not known"):
            device_named(wrong)


def test_this_machine_is_measured():
    cpu = this_cpu()
    assert 0.001 < cpu.single < 100 and 0.001 < cpu.half < 200
    assert cpu.dtype("auto") == "float32" and DEVICES["l4"].dtype("auto") == "bfloat16"
    assert torch.cuda.is_available() or this_device() == cpu
    assert measured(cpu, "float32", cpu.peak("float32") / 4).share == 0.25


def test_time_and_cost_by_hand():
    config = transformers.LlamaConfig(**_LLAMA)
    work, lengths = count_work(config, [4]), Lengths(1000, 200, 50_000)
    device = Device("made up", half=2, single=1, bandwidth=100, memory=0.001, share=0.5, batch=100)
    done = make_plan(work, lengths, [(1, device), (4, device)], dtype="float32", price=3.6)
    flops = 1000 * (2 * work.per_token * 200 + 2 * work.per_row + work.per_pair * 50_000 + work.per_read * 200)
    assert done.flops == flops
    one, four = done.devices
    assert one.seconds == pytest.approx(max(flops / 0.5e12, work.weights * 4 * 2000 / 100e9) + 200_000 * 0.35e-6)
    assert four.seconds == pytest.approx(one.seconds / 4) and four.device == "4xmade up"
    assert one.cost == pytest.approx(one.seconds / 1000) == pytest.approx(four.cost), "four cost as much, for less time"
    assert one.cost_per_million == pytest.approx(1000 * one.cost)
    assert one.rows_per_second == pytest.approx(1000 / one.seconds)
    assert one.note == "" and one.dtype == "float32" and not one.measured
    slow = make_plan(work, lengths, [(1, Device("slow", 1e6, 1e6, bandwidth=0.001, memory=1e-5))], dtype="float32")
    assert slow.devices[0].seconds == pytest.approx(work.weights * 4 * (200_000 / 32_768) / 1e6, rel=0.2)
    assert "two blocks do not fit" in slow.devices[0].note and slow.devices[0].cost is None
    tight = replace(device, memory=0.8e-9 * work.weights * 4)  # two of four blocks fit, all weights do not
    many = Lengths(10 * 4096, 200, 50_000)
    fits, loads = (make_plan(work, many, [(1, one)], dtype="float32").devices[0] for one in (device, tight))
    assert loads.seconds - fits.seconds == pytest.approx(10 * work.weights * 4 / 2e9)
    assert loads.note.startswith("block by block") and loads.note.endswith("loaded 10 times")
    sure = make_plan(work, lengths, [(1, device)], dtype="float32", measured=True).devices[0]
    assert sure.measured and sure.seconds < one.seconds
    assert json.loads(json.dumps(done.to_json()))["flops"] == flops


def test_the_formulas_have_the_figures_in_them():
    work = count_work(transformers.LlamaConfig(**_LLAMA), [2, 4])
    lines = make_plan(work, Lengths.uniform(1000, 200), []).formulas()
    assert [line["figure"] for line in lines] == [
        "operations",
        "weights read",
        "new columns",
        "row cache",
        "time",
        "cost",
    ]
    assert f"{work.per_token:.4g} weights x 200 tokens" in lines[0]["formula"]
    assert lines[2]["value"] == "212 KB" and "2 vectors x 2 bytes x 32" in lines[2]["formula"]


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"price": -1.0}, {"price": float("inf")}])
def test_options_that_make_no_sense(wrong):
    with pytest.raises(OptionError):
        make_plan(count_work(transformers.LlamaConfig(**_LLAMA), [1]), Lengths.uniform(1, 1), [], **wrong)


def test_figures_for_people():
    assert [size(n) for n in (12, 1234, 5.7e9, 8e15)] == ["12 B", "1.23 KB", "5.7 GB", "8e+03 TB"]
    times = [duration(n) for n in (0.5, 59, 600, 7500, 400_000)]
    assert times == ["0.5 s", "59 s", "10 min", "2 h 5 min", "4.6 days"]


# Calibrating


def test_a_calibration_times_rows_and_counts_what_they_took(monkeypatch):
    """The clock is ours: a model that takes 2 ms a row is measured as such, whatever this machine does meanwhile."""
    rows = Dataset.from_list([{"prompt": f"Number {n}?", "response": "word " * (1 + n % 30)} for n in range(300)])
    step, work, now, seen = EmbedLayers("toy", layers=[2]), count_work(read_config("toy"), [2]), [0.0], []
    read = EmbedLayers.vectors

    def timed(self, chosen, *, fresh=False):
        now[0] += 0.002 * len(chosen) if fresh else 0  # what was read before takes no time
        seen.append(len(chosen))
        return read(self, chosen, fresh=fresh)

    monkeypatch.setattr(EmbedLayers, "vectors", timed)
    monkeypatch.setattr("hf_safefilter.plan.calibration.time", SimpleNamespace(perf_counter=lambda: now[0]))
    sample = plan.calibrate(step, rows, work)
    assert seen == [16, 16, 32, 64, 128, 256, 300]
    assert sample.rows == sum(seen[1:]) and sample.seconds == pytest.approx(0.002 * sample.rows)
    lengths = sample_lengths(rows, ReadingOptions("toy"))
    assert sample.tokens == pytest.approx(sample.rows * lengths.mean, rel=0.1)
    assert sample.flops == pytest.approx(sample.rows * work.flops(lengths.mean, lengths.squared), rel=0.1)
    device = measured(this_cpu(), "float32", sample.speed)
    estimate = make_plan(work, lengths, [(1, device)], dtype="float32", measured=True).devices[0]
    assert estimate.seconds == pytest.approx(0.6, rel=0.1)


def test_a_slow_model_is_calibrated_on_few_rows(monkeypatch):
    now = [0.0]
    read = EmbedLayers.vectors

    def slow(self, chosen, *, fresh):
        now[0] += len(chosen)
        return read(self, chosen, fresh=fresh)

    monkeypatch.setattr(EmbedLayers, "vectors", slow)
    monkeypatch.setattr("hf_safefilter.plan.calibration.time", SimpleNamespace(perf_counter=lambda: now[0]))
    rows = Dataset.from_list(mixed_rows(100, 0.2, 3))
    assert plan.calibrate(EmbedLayers("toy", layers=[1]), rows, count_work(read_config("toy"), [1])).rows == 16
    with pytest.raises(DataError, match="no row of the sample"):
        empty = Dataset.from_list([{"prompt": "", "response": ""}] * 3)
        plan.calibrate(EmbedLayers("toy", layers=[1]), empty, count_work(read_config("toy"), [1]))


def test_without_rows_there_are_as_many_windows_as_one_long_answer_has():
    """By a second route: every start by hand."""
    for tokens, window in ((250, 18), (18, 18), (19, 18), (7, 18), (1000, 64)):
        starts = {*range(0, max(1, tokens - window), max(1, window * 5 // 6)), max(0, tokens - window)}
        assert Lengths.uniform(10, tokens, window=window).spans == (len(starts) if tokens > window else 1)
    assert Lengths.uniform(10, 250).spans == 1.0
    assert Lengths.uniform(10, 250, 36, window=18).spans == Lengths.uniform(10, 36, window=18).spans


def test_windows_count_for_disk_with_the_rows_and_without_them(call, tmp_path):
    rows = [{"prompt": "Tell me.", "response": "again " * 200} for _ in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def disk(*words):
        code, out, err = call("--format", "json", "plan", "--model", "toy", "--layers", "3", *words)
        assert code == 0, err
        return json.loads(out)["plan"]["column_bytes"]

    sampled = disk(tmp_path / "rows.jsonl")
    assert disk(tmp_path / "rows.jsonl", "--num-rows", "2000") == pytest.approx(100 * sampled)
    tokens = 220
    assert disk("--num-rows", "20", "--mean-tokens", str(tokens)) > 0.8 * sampled
    assert disk("--num-rows", "20", "--mean-tokens", str(tokens), "--window", "0") < 0.2 * sampled
