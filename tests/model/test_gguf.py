"""A GGUF file is read as the model that it holds."""

import json

import numpy as np
import pytest
from small_models import save_small_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_safefilter import EmbedLayers
from hf_safefilter.errors import ModelError
from hf_safefilter.model.load import trunk
from hf_safefilter.plan.work import count_work, read_config

gguf = pytest.importorskip("gguf")
ROWS = [{"prompt": "Name three flowers.", "response": "Fox, river and bread."}]
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def rows_of_halves(weight, heads):
    """GGUF keeps the rotary channels of a head interleaved, transformers keeps them in halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder, path):
    """The model of a folder as a GGUF file, written by hand."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(folder)
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_vocab_size(config.vocab_size)
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    tokens += [f"<unused {at}>" for at in range(len(tokens), config.vocab_size)]
    special = {token["content"] for token in inner["added_tokens"]}
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokens)
    file.add_token_types([3 if token in special else 1 for token in tokens])
    file.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    file.add_bos_token_id(tokenizer.bos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)
    file.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        values = weight.float().numpy()
        if "q_proj" in name:
            values = rows_of_halves(values, config.num_attention_heads)
        if "k_proj" in name:
            values = rows_of_halves(values, config.num_key_value_heads)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        file.add_tensor(name, np.ascontiguousarray(values))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    return write_gguf(folder, tmp_path_factory.mktemp("file") / "small.gguf")


def test_the_states_are_those_of_the_model_it_was_made_from(file, folder):
    whole, small = EmbedLayers(str(folder), [2, 4]), EmbedLayers(str(file), [2, 4])
    expected, found = whole.vectors(ROWS)[0], small.vectors(ROWS)[0]
    assert np.array_equal(expected.spans, found.spans)
    for layer in (2, 4):
        assert np.allclose(expected.vectors[layer], found.vectors[layer], atol=1e-4)


def test_it_is_pinned_by_its_bytes_and_nothing_says_that_it_is_quantised(file, tmp_path):
    step = EmbedLayers(str(file), [2])
    assert step.revision.startswith("sha256:") and step.describe()["blocks"] == 4
    model = trunk(step._key(), 2, __import__("torch").device("cpu")).model
    assert not hasattr(model.config, "quantization_config") and "hf_quantizer" not in vars(model)
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes() + b"\0")
    assert EmbedLayers(str(other), [2]).revision != step.revision


def test_a_plan_reads_its_configuration(file, folder):
    assert count_work(read_config(str(file)), [2], "mean") == count_work(read_config(str(folder)), [2], "mean")


def test_what_is_no_gguf_file_is_said(tmp_path, file):
    (tmp_path / "zero.gguf").write_bytes(bytes(64))
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        EmbedLayers(str(tmp_path / "zero.gguf"), [1])
    assert "GGUF" in error.value.fix
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelError):
        EmbedLayers(str(tmp_path / "cut.gguf"), [1]).vectors(ROWS)
    with pytest.raises(ModelError, match="is missing") as error:
        EmbedLayers(str(file.parent), [1])
    assert file.name in error.value.fix


def test_an_unknown_architecture_and_an_unknown_number_type_are_said(tmp_path, file):
    """One name changed to another of its length, or one number in the header: of v3, behind name, rank and shape."""
    raw = file.read_bytes()
    (tmp_path / "arch.gguf").write_bytes(raw.replace(b"llama", b"gnomo"))
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        EmbedLayers(str(tmp_path / "arch.gguf"), [1])
    assert "gnomo" in error.value.found and "architecture" in error.value.fix and "safetensors" in error.value.fix
    name = b"blk.0.attn_q.weight"
    place = raw.index(name) + len(name) + 4 + 2 * 8
    assert int.from_bytes(raw[place : place + 4], "little") == 0  # F32
    (tmp_path / "type.gguf").write_bytes(raw[:place] + (99).to_bytes(4, "little") + raw[place + 4 :])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        EmbedLayers(str(tmp_path / "type.gguf"), [1]).vectors(ROWS)
    assert "99" in error.value.found and "number types" in error.value.fix and "safetensors" in error.value.fix
