"""References and embedded rows with planted harm, in a store of their own."""

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from stand_in import ROWS, UNREADABLE, WIDTH, StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter.data.conversations import as_conversations, row_id
from hf_safefilter.references import ReferenceIndex


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="session")
def index() -> ReferenceIndex:
    return ReferenceIndex.build(unsafe_rows(), safe_rows(), StandIn(), license="mit", source="the tests")


@pytest.fixture(scope="session")
def planted() -> np.ndarray:
    """True for the rows that comply with harm."""
    return np.arange(ROWS) % 3 == 0


@pytest.fixture(scope="session")
def rows(planted) -> Dataset:
    """Embedded rows: every third complies, the others refuse at varied length; two cannot be read."""
    texts = [f"Sure, row {n}." if bad else f"Sorry, {'no ' * (n % 9)}{n}." for n, bad in enumerate(planted)]
    texts[7] = ""
    vectors = np.stack([vector_of(text) for text in texts]).astype(np.float16)
    vectors[list(UNREADABLE)] = np.nan
    pairs = [{"prompt": f"Ask {n}", "response": text} for n, text in enumerate(texts)]
    first, second = vectors[:, 0].astype(np.float32), vectors[:, 0].astype(np.float32) ** 3
    columns = {
        "prompt": [pair["prompt"] for pair in pairs],
        "response": texts,
        "row_id": [row_id(one) for one in as_conversations(pairs)],
        "unscorable": [UNREADABLE.get(n, "") for n in range(ROWS)],
        "emb_layer_2": vectors.tolist(),
        "first_score": first.tolist(),
        "second_score": second.tolist(),
    }
    features = Features(
        {name: Value("string") for name in ("prompt", "response", "row_id", "unscorable")}
        | {"emb_layer_2": List(Value("float16"), length=WIDTH)}
        | {name: Value("float32") for name in ("first_score", "second_score")}
    )
    return Dataset.from_dict(columns, features=features)
