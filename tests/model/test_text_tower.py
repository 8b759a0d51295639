"""The text model inside a multimodal one: found under any prefix, read whole, with the format of its weights."""

import numpy as np
import pytest
import torch
import transformers
from small_multimodal import FP8, MULTIMODAL, in_fp8, rewritten, save_multimodal

from hf_safefilter import EmbedLayers
from hf_safefilter.errors import ModelError
from hf_safefilter.model import load

ROWS = [
    {"prompt": "Name a flower.", "completion": "A crocus blooms early."},
    {"prompt": "What runs through Paris?", "completion": "The Seine runs through all of it, from end to end."},
]
WHERE = {
    "gemma3": "language_model.model.",
    "idefics3": "model.text_model.",
    "qwen2_vl": "model.",
    "mllama": "language_model.model.",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name -> its folder and the model itself, each made once."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "model"
            made[name] = (folder, save_multimodal(folder, name))
        return made[name]

    return of


@pytest.fixture(autouse=True)
def empty_table(monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "off")
    yield
    load._trunks.clear()


def read(folder, layer=2):
    return EmbedLayers(str(folder), [layer], window=None).vectors(ROWS)[0].vectors[layer]


def by_hand(folder, model, layer=2):
    """Mean over the answer of transformers' own hidden states, one row at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for row in ROWS:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        given = {"return_tensors": "pt", "return_dict": True}
        asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **given)["input_ids"]
        ids = tokenizer.apply_chat_template(turns, **given)["input_ids"]
        with torch.no_grad():
            states = model.get_decoder()(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
        found.append(states[asked.shape[1] :].mean(0).numpy())
    return np.array(found)


def cosines(one, other):
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_text_model_is_read_as_within_the_whole(models, name):
    folder, model = models(name)
    np.testing.assert_allclose(read(folder), by_hand(folder, model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["thinker.model.", "a.b.c.language_model.", "transformer."])
def test_any_prefix_is_found(models, tmp_path, prefix):
    folder, _ = models("gemma3")
    moved = rewritten(
        folder, tmp_path / "moved", lambda w: {k.replace(WHERE["gemma3"], prefix): v for k, v in w.items()}
    )
    np.testing.assert_array_equal(read(moved), read(folder))


def test_of_two_text_models_the_one_of_its_sizes_is_read(models, tmp_path):
    def beside(weights):
        inner = {k.removeprefix(WHERE["gemma3"]): v for k, v in weights.items() if k.startswith(WHERE["gemma3"])}
        smaller = {f"talker.model.{k}": v[..., : v.shape[-1] // 2] for k, v in inner.items()}
        return {f"thinker.model.{k}": v for k, v in inner.items()} | smaller

    folder, _ = models("gemma3")
    np.testing.assert_array_equal(read(rewritten(folder, tmp_path / "two", beside)), read(folder))
    twice = rewritten(folder, tmp_path / "twice", lambda w: w | {f"draft.{k}": v for k, v in w.items()})
    with pytest.raises(ModelError, match=r"is not found among its weights(.|\n)*under '.*model\.' and '.*model\.'"):
        read(twice)
    none = rewritten(folder, tmp_path / "none", lambda w: {k.replace(".", "_"): v for k, v in w.items()})
    with pytest.raises(ModelError, match=r"is not found among its weights(.|\n)*no weight is called"):
        read(none)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_what_the_whole_says_of_quantised_weights_holds_for_its_text_model(models, tmp_path, name):
    folder, _ = models(name)
    stored = rewritten(folder, tmp_path / "fp8", in_fp8, quantization_config=FP8)
    assert cosines(read(stored), read(folder)).min() > 0.99
    assert EmbedLayers(str(stored), [2]).describe()["weights"] == "fp8, dequantised"
    assert "weights" not in EmbedLayers(str(folder), [2]).describe()


def test_quantised_weights_without_scales_are_no_model(models, tmp_path):
    folder, _ = models("gemma3")
    raw = rewritten(folder, tmp_path / "raw", lambda w: in_fp8(w, scales=False), quantization_config=FP8)
    with pytest.raises(ModelError, match="28 of them have no scales"):
        read(raw)
    unsaid = rewritten(folder, tmp_path / "unsaid", in_fp8)
    with pytest.raises(ModelError, match="scales would not be read"):
        read(unsaid)


def test_a_block_that_reads_images_alone_is_not_read(models):
    folder, _ = models("mllama")  # its block 2 attends to an image
    with pytest.raises(ModelError, match="layer 3 is not computed for rows of text"):
        read(folder, 3)
    assert np.isfinite(read(folder, 4)).all()
