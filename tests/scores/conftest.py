"""References and embedded rows with planted harm, in a store of their own."""

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from stand_in import ROWS, UNREADABLE, WIDTH, StandIn, safe_rows, unsafe_rows, vector_of, windows_of

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.spans import SPAN
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
    """Embedded rows of one to three spans: every third complies in one of them, the others refuse at varied length;
    two cannot be read."""
    texts = [f"Sure, row {n}." if bad else f"Sorry, {'no ' * (n % 9)}{n}." for n, bad in enumerate(planted)]
    texts[7] = ""
    read = [[] if n in UNREADABLE else windows_of(n, text) for n, text in enumerate(texts)]
    pairs = [{"prompt": f"Ask {n}", "response": text} for n, text in enumerate(texts)]
    first = np.array([vector_of(text)[0] for text in texts])
    columns = {
        "prompt": [pair["prompt"] for pair in pairs],
        "response": texts,
        "row_id": [row_id(one) for one in as_conversations(pairs)],
        "unscorable": [UNREADABLE.get(n, "") for n in range(ROWS)],
        "spans": [
            [dict(zip(SPAN.names, (1, False, 5 * at, 5 * at + 5), strict=True)) for at in range(len(one))]
            for one in read
        ],
        "emb_layer_2": [[vector_of(window).astype(np.float16).tolist() for window in one] for one in read],
        "emb_layer_2_last_prompt": [
            [vector_of(f"Ask {n}").astype(np.float16).tolist()] * len(one) for n, one in enumerate(read)
        ],
        "first_score": np.where([n in UNREADABLE for n in range(ROWS)], np.nan, first).tolist(),
        "second_score": np.where([n in UNREADABLE for n in range(ROWS)], np.nan, first**3).tolist(),
    }
    span = {"turn": Value("int32"), "rejected": Value("bool"), "start": Value("int32"), "stop": Value("int32")}
    features = Features(
        {name: Value("string") for name in ("prompt", "response", "row_id", "unscorable")}
        | {"spans": List(span)}
        | {name: List(List(Value("float16"), length=WIDTH)) for name in ("emb_layer_2", "emb_layer_2_last_prompt")}
        | {name: Value("float32") for name in ("first_score", "second_score")}
    )
    return Dataset.from_dict(columns, features=features)
