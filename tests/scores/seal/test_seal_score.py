"""SealScore finds a row by its id alone, and says of every other row why it has no score."""

import json

import numpy as np
import pytest
from datasets import Dataset
from rows_and_models import fox_rows

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.errors import IntegrityError, MissingError, OptionError
from hf_safefilter.recipe import Recipe
from hf_safefilter.scores import make
from hf_safefilter.scores.seal import SealScore, SealSelector

ROWS = fox_rows(6)
IDS = [row_id(conversation) for conversation in as_conversations(ROWS)]
LOGITS = {key: float(number) for number, key in enumerate(IDS[:4])}


@pytest.fixture
def selector():
    return SealSelector.of_logits(LOGITS, unfit={IDS[4]: "nan_loss"}, facts={"activation": "softmax"})


def test_higher_is_more_dangerous_and_unknown_rows_have_no_score(selector):
    scored = Dataset.from_list(ROWS).map(SealScore(selector), batched=True)
    np.testing.assert_array_equal(scored["seal_score"][:], [0, -1, -2, -3, np.nan, np.nan])
    assert scored["seal_unscored"][:] == ["", "", "", "", "nan_loss", "not_fitted"]


def test_the_id_column_is_believed_and_so_is_what_the_embedder_could_not_read(selector):
    batch = {"row_id": [IDS[3], IDS[0], "no id", None], "unscorable": ["", "non_finite", "", ""]}
    scores = SealScore(selector)(batch)
    np.testing.assert_array_equal(scores["seal_score"], [-3, np.nan, np.nan, np.nan])
    assert scores["seal_unscored"].tolist() == ["", "non_finite", "not_fitted", "not_fitted"]


def test_rows_of_no_known_shape(selector):
    renamed = [{"q": row["prompt"], "a": row["response"]} for row in ROWS]
    step = SealScore(selector, columns={"prompt": "q", "response": "a"})
    assert Dataset.from_list(renamed).map(step, batched=True)["seal_score"][1] == -1


def test_unreadable_rows_have_their_own_reason(selector):
    scores = SealScore(selector)({"prompt": ["Hi", ""], "response": ["", "Yes"]})
    assert scores["seal_unscored"].tolist() == ["empty_response", "empty_prompt"]
    assert np.isnan(scores["seal_score"]).all()


def test_saved_loaded_and_named_by_digest_it_is_the_same(selector, tmp_path):
    folder = selector.save(tmp_path / "selector")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "selector.safetensors"}
    assert SealSelector.load(folder) == selector
    steps = [SealScore(selector), SealScore(selector.digest), SealScore(str(folder)), make("seal", selector=selector)]
    assert len(set(steps)) == 1
    assert steps[0].record() == {"step": "SealScore", "selector": selector.digest, "columns": None, "algorithm": 1}
    assert json.loads(json.dumps(selector.report()))["fitted"] == 4


def test_an_altered_selector_is_refused(selector, tmp_path):
    folder = selector.save(tmp_path / "selector")
    content = bytearray((folder / "selector.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "selector.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"selector\.safetensors"):
        SealScore(str(folder))


def test_without_a_selector_the_command_that_fits_one_is_named(selector):
    for call in (SealScore, lambda: make("seal")):
        with pytest.raises(OptionError, match="hf-safefilter seal"):
            call()
    with pytest.raises(MissingError):
        SealScore("sha256:" + "0" * 64)
    with pytest.raises(MissingError, match="no selector at 'no/such/folder'"):
        SealScore("no/such/folder")


def test_a_recipe_may_name_a_fitted_selector(selector):
    from hf_safefilter.scores import make_score

    body = {
        "data": {"license": "mit", "source": "a test"}, "model": {"name": "toy"}, "select": {"drop_count": 1},
        "methods": [{"name": "seal", "options": {"selector": selector.digest}}],
    }  # fmt: skip
    (method,) = Recipe.read(body).methods
    assert make_score(method.name, method.options, layer=4) == SealScore(selector)


def test_keeping_a_share(selector):
    many = SealSelector.of_logits({f"{n:032x}": n / 111_900 for n in range(111_900)})
    (line,) = many.keep_curve([0.8])
    assert line["rows"] == 89_520  # the published selection from as many rows
    p = np.exp(np.arange(4.0)) / np.exp(np.arange(4.0)).sum()
    np.testing.assert_allclose(np.sort(selector.weights), 4 * p)
    assert selector.keep_curve([0.5])[0] == {
        "keep_fraction": 0.5, "rows": 2, "border_score": -2.0, "weight": pytest.approx(p[2:].sum()),
    }  # fmt: skip
    with pytest.raises(OptionError, match="keep_fraction=1.5"):
        selector.keep_curve([1.5])


def test_no_rows_at_all(selector):
    empty = SealSelector.of_logits({})
    scores = SealScore(empty)({"prompt": ["Hi"], "response": ["Yes"]})
    assert np.isnan(scores["seal_score"]).all() and scores["seal_unscored"].tolist() == ["not_fitted"]
