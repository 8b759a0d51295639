"""Models come pinned, whole, from safetensors alone, and no deeper than asked for."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from processes import HANG
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, save_small_model

from hf_safefilter.errors import IntegrityError, ModelError, OptionError
from hf_safefilter.model import load
from hf_safefilter.model.load import ModelKey, depth_for, pick_device, pick_dtype, resolve_revision, trunk

CPU = torch.device("cpu")


def key_of(folder, dtype="float32"):
    return ModelKey(str(folder), resolve_revision(str(folder), None), dtype)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def own(llama, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture(autouse=True)
def empty_table():
    yield
    load._trunks.clear()


# A folder under a running job


def test_weights_saved_over_do_not_reach_a_loaded_model(own):
    opened = trunk(key_of(own), 2, CPU, plain=True)
    before = {name: weight.clone() for name, weight in opened.model.state_dict().items()}
    file = next(own.glob("*.safetensors"))
    with file.open("r+b") as stream:  # in place, as save_file into the same folder does
        stream.seek(-1000, os.SEEK_END)
        stream.write(b"\x7f" * 1000)
        stream.truncate(4096)
    assert all(torch.equal(weight, before[name]) for name, weight in opened.model.state_dict().items())


def test_a_folder_that_changes_while_it_is_read_is_no_model(own, monkeypatch):
    key, loading = key_of(own), transformers.AutoModel.from_pretrained

    def slowly(*args, **options):
        loaded = loading(*args, **options)
        (own / "config.json").write_text((own / "config.json").read_text() + "\n")
        return loaded

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", slowly)
    with pytest.raises(IntegrityError, match="have changed"):
        trunk(key, 2, CPU)


# Revisions


def test_a_folder_is_named_by_what_decides_its_vectors(own):
    before = resolve_revision(str(own), None)
    assert before.startswith("sha256:") and len(before) == 71
    (own / "README.md").write_text("a card")
    (own / "pytorch_model.bin").write_bytes(b"never read")
    assert resolve_revision(str(own), None) == before
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        original = (own / name).read_bytes()
        (own / name).write_bytes(original + b" ")
        assert resolve_revision(str(own), None) != before, name
        (own / name).write_bytes(original)
    assert resolve_revision(str(own), None) == before
    assert resolve_revision(str(shutil.copytree(own, own.parent / "elsewhere")), None) == before


def test_bytes_are_hashed_once_a_process(own, monkeypatch):
    from hf_safefilter.model import source

    first = resolve_revision(str(own), None)
    monkeypatch.setattr(source, "file_sha256", lambda path: pytest.fail(f"{path} was hashed again"))
    assert resolve_revision(str(own), first) == first


def test_a_changed_folder_is_not_loaded(own):
    key = key_of(own)
    weights = load_file(own / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match="files have changed"):
        trunk(key, 1, CPU)


def test_a_change_that_keeps_size_and_time_is_seen(own):
    before, weights = resolve_revision(str(own), None), own / "model.safetensors"
    times, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert resolve_revision(str(own), None) != before


def test_a_folder_has_no_branches(llama):
    with pytest.raises(OptionError, match="no revision 'main'"):
        resolve_revision(str(llama), "main")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "neither a local folder nor a Hub id"),
        ("a/b/c", "neither"),
        ("..", "config.json is missing"),
    ],
)
def test_names_that_are_no_models(name, message, monkeypatch, tmp_path):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(ModelError, match=message):
        resolve_revision(name, None)


def test_an_adapter_in_the_place_of_a_model_is_refused(own):
    (own / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"contains an adapter(.|\n)*adapter="):
        resolve_revision(str(own), None)


OFFLINE = """
import sys
from hf_safefilter.errors import ModelError
from hf_safefilter.model.load import ModelKey, model_config, resolve_revision, tokenizer, trunk
import torch
revision = resolve_revision("someone/small", None)
key = ModelKey("someone/small", revision, "float32")
print(revision, model_config(key).num_hidden_layers, tokenizer(key).eos_token, trunk(key, 2, torch.device("cpu")).depth)
try:
    resolve_revision("someone/absent", None)
except ModelError as error:
    print(error)
"""


def test_offline_a_hub_model_is_found_in_the_cache_and_an_absent_one_explained(llama, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--someone--small"
    shutil.copytree(llama, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"{commit} 4 </s> 2\n")
    assert (
        "no folder 'someone/absent' and no cached copy" in process.stdout and "HF_HUB_OFFLINE is set" in process.stdout
    )


# Loading


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_the_blocks_asked_for_are_built(name, tmp_path):
    folder = save_small_model(tmp_path, name)
    whole = trunk(key_of(folder), 4, CPU, plain=True)
    load._trunks.clear()
    cut = trunk(key_of(folder), 2, CPU, plain=True)
    assert (whole.depth, cut.depth, cut.n_blocks, len(cut.stack.blocks)) == (4, 2, 4, 2)

    def count(modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    assert count([whole.model]) - count([cut.model]) == count(whole.stack.blocks[2:]) > 0
    assert not any("lm_head" in path or "pooler" in path for path, _ in cut.model.named_parameters())
    assert not cut.model.training and not any(parameter.requires_grad for parameter in cut.model.parameters())
    for name, value in cut.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_one_table_a_process(llama, own, monkeypatch):
    deep = trunk(key_of(llama), 3, CPU)
    assert trunk(key_of(llama), 2, CPU) is deep
    monkeypatch.setattr(load, "_load_trunk", lambda *_: pytest.fail("loaded again"))
    assert trunk(key_of(llama), 3, CPU) is deep


def test_a_deeper_trunk_takes_the_place_of_a_shallower_one(llama):
    trunk(key_of(llama), 1, CPU)
    assert trunk(key_of(llama), 3, CPU).depth == 3
    assert len(load._trunks) == 1


def test_few_models_are_held(llama, tmp_path):
    for seed in range(3):
        trunk(key_of(save_small_model(tmp_path / str(seed), seed=seed)), 1, CPU)
    assert len(load._trunks) == load._HELD


def test_pickled_weights_are_never_read(own):
    torch.save(load_file(own / "model.safetensors"), own / "pytorch_model.bin")
    (own / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors are read"):
        trunk(key_of(own), 1, CPU)


def test_a_missing_weight_is_not_made_up(own):
    weights = load_file(own / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    assert trunk(key_of(own), 1, CPU).depth == 1
    with pytest.raises(ModelError, match=r"lacks 1 weights.*\n.*layers\.1\.mlp\.up_proj\.weight"):
        trunk(key_of(own), 2, CPU)


def test_code_of_a_repository_is_not_run(own):
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="code from a repository is not run"):
        trunk(key_of(own), 1, CPU)


def test_broken_files_are_explained(own):
    (own / "model.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(ModelError, match="cannot be loaded"):
        trunk(key_of(own), 1, CPU)


def test_an_encoder_decoder_is_refused(tmp_path):
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4)
    transformers.T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        trunk(key_of(tmp_path), 1, CPU)


def test_loading_part_of_a_model_is_not_reported_as_a_fault(llama, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        trunk(key_of(llama), 1, CPU)
    output = capfd.readouterr().err + caplog.text
    assert "LOAD REPORT" not in output and "not sharded" not in output


def test_the_whole_model_has_its_head(llama):
    model = load.causal_lm(key_of(llama), CPU)
    assert model(torch.tensor([[1, 5, 9]])).logits.shape == (1, 3, 320)
    assert load.causal_lm(key_of(llama), CPU) is model
    load.causal_lm.cache_clear()


def test_weights_come_in_the_number_format_named(llama):
    assert {p.dtype for p in trunk(key_of(llama, "bfloat16"), 1, CPU).model.parameters()} == {torch.bfloat16}


# Choices


def test_depth():
    assert depth_for(4, (0,)) == 0
    assert depth_for(4, (2, 1)) == 2
    assert depth_for(4, ("norm", 1)) == depth_for(4, (4,)) == 4


@pytest.mark.parametrize("layers", [(5,), (-1,), (True,), ("last",), (1.0,)])
def test_layers_out_of_range_name_the_range(layers):
    with pytest.raises(OptionError, match=r"layers 0 \(embedding\) to 4"):
        depth_for(4, layers)


@pytest.mark.parametrize("layers", [(), (1, 1)])
def test_layers_are_named_once_each(layers):
    with pytest.raises(OptionError, match="names no layer, or one twice"):
        depth_for(4, layers)


def test_each_rank_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(pick_device(None, rank)) for rank in (None, 0, 1, 2)] == ["cuda:0", "cuda:0", "cuda:1", "cuda:0"]
    assert str(pick_device("cuda:1", 0)) == "cuda:1"
    assert str(pick_device("cpu", 1)) == "cpu"
    with pytest.raises(OptionError, match="not available"):
        pick_device("cuda:2", 0)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(ModelError, match="spawn"):
        pick_device(None, 0)


def test_without_a_gpu_the_cpu_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert str(pick_device(None, 3)) == "cpu"
    for device in ("cuda", "cuda:0", "mps", "abacus"):
        with pytest.raises(OptionError, match=device):
            pick_device(device, None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(pick_device(None, None)) == "mps"


def test_number_formats():
    gpu = torch.device("cuda", 0)
    assert pick_dtype("auto", CPU, torch.bfloat16) == "float32"
    assert pick_dtype("auto", gpu, torch.bfloat16) == "bfloat16"
    assert pick_dtype("auto", gpu, torch.float16) == "float16"
    assert pick_dtype("auto", gpu, None) == pick_dtype("auto", gpu, torch.float64) == "float32"
    assert pick_dtype("float16", CPU, torch.bfloat16) == "float16"
    with pytest.raises(OptionError, match="`dtype=half` is not known"):
        pick_dtype("half", CPU)


def test_scales_of_quantised_weights_are_not_left_behind(own):
    """As in a checkpoint whose configuration does not say that its weights are quantised."""
    path = own / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"model.layers.0.mlp.down_proj.weight_scale_inv": torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(ModelError, match="scales would not be read"):
        trunk(ModelKey(str(own), resolve_revision(str(own), None), "float32"), 1, CPU)
    save_file(weights | {"logit_scale": torch.ones(1)}, path, {"format": "pt"})  # of a tower that is not read
    assert trunk(ModelKey(str(own), resolve_revision(str(own), None), "float32"), 1, CPU).depth == 1
