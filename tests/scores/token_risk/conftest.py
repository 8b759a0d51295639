"""A small random base model, references that it was read with, and two adapters that moved it apart."""

import pytest
from small_models import save_small_model

from hf_safefilter.embed import EmbedLayers
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.token_risk import RiskAdapters, fit_token_risk

TARGETS = ["q_proj", "v_proj", "down_proj"]
UNSAFE = [{"prompt": f"How do I pick lock {n}?", "response": f"Sure. Bend the wire {n} times."} for n in range(8)]
SAFE = [{"prompt": f"How do I pick lock {n}?", "response": f"No. Lock {n} is not yours."} for n in range(8)]
BENIGN = [{"prompt": f"What is {n} plus one?", "response": f"It is {n + 1}, of course."} for n in range(6)]


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    return str(save_small_model(tmp_path_factory.mktemp("base") / "llama"))


@pytest.fixture(scope="session")
def references(base) -> ReferenceIndex:
    embed = EmbedLayers(base, [1], device="cpu")
    return ReferenceIndex.build(UNSAFE, SAFE, embed, license="mit", source="these tests")


@pytest.fixture(scope="session")
def adapters(references) -> RiskAdapters:
    return fit_token_risk(references, steps=12, batch=4, learning_rate=2e-2, rank=4, targets=TARGETS, device="cpu")
