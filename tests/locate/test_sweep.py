import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconConfig, FalconForCausalLM

from hf_safefilter.errors import ModelError
from hf_safefilter.locate.refusals import RefusalMatcher, verdicts
from hf_safefilter.locate.sweep import Cell, Sweep
from hf_safefilter.model.generate import replies
from hf_safefilter.model.scaled import scaled
from tests.small_models import save_small_model, small_tokenizer

PROMPTS = [
    "Name three flowers.",
    "Write a short story about a fox who learns to share its food with friends.",
    "Bake bread",
    "Why?",
    "What is the capital of France, and which river runs through it?",
]
# letters that random models write now and then, so that all verdicts occur
JUDGE = RefusalMatcher("letters", ("a", "e", "th"), where=6)
_WIDE = {"mistral": {"sliding_window": 250}, "gemma2": {"sliding_window": 250}}
CELLS = [Cell(), *(Cell((block,), by) for block in range(4) for by in (0.7, 1.1, 1.3)), Cell((1, 2), 1.2)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    held = {}

    def get(name):
        if name not in held:
            folder = save_small_model(tmp_path_factory.mktemp(name), name, **_WIDE.get(name, {}))
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            held[name] = model, AutoTokenizer.from_pretrained(folder)
        return held[name]

    return get


def plainly(model, tokenizer, judge, cell, new):
    """The oracle: every reply generated whole, on its own."""
    said = []
    for prompt in PROMPTS:
        if cell.blocks:
            with scaled(model, cell.blocks, cell.by):
                said += replies(model, tokenizer, [prompt], max_new_tokens=new)
        else:
            said += replies(model, tokenizer, [prompt], max_new_tokens=new)
    return said, verdicts(judge, PROMPTS, said)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma2", "phi3", "gpt_neox", "opt"])
def test_shared_work_gives_the_verdicts_of_whole_replies(small, name):
    model, tokenizer = small(name)
    sweep = Sweep(model, tokenizer, PROMPTS, JUDGE, max_new_tokens=10)
    assert sweep.shares
    found = sweep.run(CELLS)
    kinds = set()
    for cell in CELLS:
        _, expected = plainly(model, tokenizer, JUDGE, cell, 10)
        assert found[cell] == expected, cell
        kinds |= set(expected)
    assert len(kinds) > 1, "the test would not see a difference"


def agrees(model, tokenizer):
    sweep = Sweep(model, tokenizer, PROMPTS, JUDGE, max_new_tokens=6)
    assert sweep.shares
    found = sweep.run(CELLS)
    return all(found[cell] == plainly(model, tokenizer, JUDGE, cell, 6)[1] for cell in CELLS)


def test_blocks_that_put_out_tuples_are_swept_too():
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = FalconForCausalLM(FalconConfig(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    assert agrees(model, small_tokenizer())


def test_a_model_with_adapters_is_swept_too(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(save_small_model(tmp_path), dtype=torch.float32)
    adapters = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2, init_lora_weights=False)
    assert agrees(get_peft_model(model, adapters).eval(), small_tokenizer())


def test_a_model_without_a_head_replies_nothing(small):
    model, tokenizer = small("llama")
    with pytest.raises(ModelError, match="no language-model head"):
        Sweep(model.model, tokenizer, PROMPTS, JUDGE)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_replies_themselves_are_the_same(small, name):
    model, tokenizer = small(name)
    texts = []

    class Listener:
        def refused(self, prompts, said):
            texts.append(dict(zip(prompts, said, strict=True)))
            return [False] * len(said)

    sweep = Sweep(model, tokenizer, PROMPTS, Listener(), max_new_tokens=12)
    assert sweep.shares
    for cell in CELLS:
        sweep.run([cell])
        said, _ = plainly(model, tokenizer, JUDGE, cell, 12)
        assert [texts[-1][prompt] for prompt in PROMPTS] == said, cell


def test_prompts_beyond_the_budget_are_worked_on_in_turn(small):
    model, tokenizer = small("llama")
    whole = Sweep(model, tokenizer, PROMPTS, JUDGE, max_new_tokens=6)
    parts = Sweep(model, tokenizer, PROMPTS, JUDGE, max_new_tokens=6, cache_bytes=1)
    assert len(whole._chunks()) == 1 and len(parts._chunks()) == len(PROMPTS)
    assert whole.run(CELLS) == parts.run(CELLS)


def test_models_with_short_windows_are_generated_whole(tmp_path):
    folder = save_small_model(tmp_path, "mistral")  # a window of 6 tokens
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sweep = Sweep(model, tokenizer, PROMPTS, JUDGE, max_new_tokens=6)
    assert not sweep.shares
    found = sweep.run(CELLS[:4])
    for cell in CELLS[:4]:
        assert found[cell] == plainly(model, tokenizer, JUDGE, cell, 6)[1]


def test_the_model_is_left_as_it_was(small):
    model, tokenizer = small("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    Sweep(model, tokenizer, PROMPTS, JUDGE, max_new_tokens=4).run(CELLS)
    assert model.training
    model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in block.__dict__ for block in model.model.layers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
