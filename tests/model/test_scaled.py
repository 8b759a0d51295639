import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.linears import prepack
from hf_safefilter.model.scaled import PROJECTIONS, WITHOUT_O, form_of, require_effect, scaled, scaling_effect
from tests.small_models import save_small_model

IDS = torch.arange(7, 27).reshape(2, 10)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    held = {}

    def get(name, **changes):
        key = (name, *changes.items())
        if key not in held:
            folder = save_small_model(tmp_path_factory.mktemp(name), name, **changes)
            held[key] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return held[key]

    return get


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def is_projection(name, block):
    return f".{block}." in name and name.endswith(".weight") and "norm" not in name


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_named_blocks_alone_are_scaled_exactly_and_come_back_bit_for_bit(models, name, dtype):
    model = models(name).to(dtype)
    before, first = state(model), logits(model)
    with scaled(model, [1, 2], 1.3) as scaling:
        assert scaling.form == "weights" and scaling.blocks == (1, 2)
        for key, tensor in model.state_dict().items():
            hit = is_projection(key, 1) or is_projection(key, 2)
            assert torch.equal(tensor, before[key] * 1.3 if hit else before[key]), key
        assert not torch.equal(logits(model), first)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(logits(model), first)
    model.to(torch.float32)


def test_all_comes_back_after_an_error_too(models):
    model = models("llama")
    before = state(model)
    with pytest.raises(RuntimeError, match="stop"), scaled(model, 0, 0.7):
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_no_other_memory_than_the_blocks_own_is_taken(models):
    model = models("llama")
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with scaled(model, 1, 1.2):
        moved = {name for name, parameter in model.named_parameters() if parameter.data_ptr() != addresses[name]}
        assert moved == {name for name in addresses if is_projection(name, 1)}
    assert addresses == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def test_without_the_output_projection(models):
    model = models("llama")
    before = state(model)
    with scaled(model, 0, 1.2, WITHOUT_O):
        now = model.state_dict()
        assert torch.equal(
            now["model.layers.0.self_attn.o_proj.weight"], before["model.layers.0.self_attn.o_proj.weight"]
        )
        assert not torch.equal(now["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


def test_layers_out_of_reach_are_scaled_by_their_outputs(models):
    # prepacked weights cannot be changed, like quantised ones: same result up to rounding
    model = models("qwen2", num_hidden_layers=3)  # with biases, which must stay as they are
    with scaled(model, 1, 1.3):
        expected = logits(model)
    prepack(model.model)
    with scaled(model, 1, 1.3) as scaling:
        assert scaling.form == "outputs"
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_scaled_by_their_outputs(models):
    from torch.ao.quantization import quantize_dynamic

    model = models("qwen2", num_hidden_layers=2)
    biases = [0.1 * torch.arange(32.0), 0.1 * torch.arange(16.0)]
    model.model.layers[1].self_attn.q_proj.bias.data, model.model.layers[1].self_attn.k_proj.bias.data = biases
    small = quantize_dynamic(model, {torch.nn.Linear})
    x = torch.randn(3, 32)
    layer = small.model.layers[1].self_attn.q_proj
    before = layer(x)
    with scaled(small, 1, 1.3) as scaling:
        assert scaling.form == "outputs"
        torch.testing.assert_close(layer(x), (before - biases[0]) * 1.3 + biases[0])
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_where_norms_would_cancel_it_the_branches_are_scaled(models, name):
    model = models(name)
    first = logits(model)
    with scaled(model, 1, 1.3) as scaling:
        assert scaling.form == "branches"
    assert form_of(model) == "branches"
    assert torch.equal(logits(model), first)
    # every branch is 1.3 times as large, the second one as seen through the first
    seen = {}
    block = find_blocks(model).blocks[1]
    handle = block.post_attention_layernorm.register_forward_hook(lambda _, a, out: seen.setdefault("branch", out))
    plus = block.pre_feedforward_layernorm.register_forward_pre_hook(lambda _, a: seen.setdefault("sum", a[0]))
    pre = block.register_forward_pre_hook(lambda _, a: seen.setdefault("in", a[0]))
    try:
        with torch.no_grad(), scaled(model, 1, 1.3):
            model(IDS)
    finally:
        for hook in (handle, plus, pre):
            hook.remove()
    torch.testing.assert_close(seen["sum"], seen["in"] + 1.3 * seen["branch"])


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox", "gemma2", "gemma3"])
def test_scaling_does_something_everywhere(models, name):
    model = models(name)
    assert scaling_effect(model, 1, lambda: model(IDS)) >= 0.2
    require_effect(model, 1, lambda: model(IDS), PROJECTIONS)


def test_a_scale_that_a_norm_cancels_is_refused(models, monkeypatch):
    from hf_safefilter.model import scaled as module

    model = models("gemma2")
    monkeypatch.setattr(module, "_POST_NORMS", ())  # as if the norms were not known: scaling the weights has no effect
    with pytest.raises(ModelError, match="changes its output by"):
        require_effect(model, 1, lambda: model(IDS), PROJECTIONS)


def test_a_block_that_adds_nothing_cannot_be_scaled_to_effect(models):
    model = models("llama", num_hidden_layers=3)  # as blocks that were put in to be trained later
    block = model.model.layers[1]
    for last in (block.self_attn.o_proj, block.mlp.down_proj):
        last.weight.data.zero_()
    with pytest.raises(ModelError, match="changes its output by only 0%"):
        require_effect(model, 1, lambda: model(IDS), PROJECTIONS)


@pytest.mark.parametrize(
    ("blocks", "by", "parts"),
    [
        (4, 1.2, PROJECTIONS),
        (-1, 1.2, PROJECTIONS),
        ([], 1.2, PROJECTIONS),
        ([0, 9], 1.2, PROJECTIONS),
        (0, 1, PROJECTIONS),
        (0, 0.0, PROJECTIONS),
        (0, float("nan"), PROJECTIONS),
        (0, 1.2, ("x",)),
        (0, 1.2, ()),
    ],
)
def test_what_makes_no_sense_is_refused(models, blocks, by, parts):
    with pytest.raises(OptionError), scaled(models("llama"), blocks, by, parts):
        pass


def test_a_fused_matrix_is_not_cut(models):
    with pytest.raises(OptionError, match="in one matrix"), scaled(models("phi3"), 0, 1.2, ("q",)):
        pass


def test_projections_that_are_not_recognised_are_named(models):
    model = models("llama", num_hidden_layers=2)
    model.model.layers[0].mlp.strange = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="mlp.strange"), scaled(model, 0, 1.2):
        pass
