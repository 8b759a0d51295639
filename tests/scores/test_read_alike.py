"""A score compares no vectors with those of references that were read in another way."""

import shutil

import numpy as np
import pytest
from datasets import Dataset
from small_models import save_small_model

from hf_safefilter import (
    AnchorScore,
    DirectionScore,
    EmbedLayers,
    LarfScore,
    NearestScore,
    ProbeScore,
    ReferenceIndex,
    ShiftScore,
    fit_probe,
)
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.errors import DataError
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

FACTS = {"license": "mit", "source": "the tests"}
POSITIONS = "mean,last_prompt"
SCORES = {
    "larf": lambda index: LarfScore(index, 2),
    "anchor": lambda index: AnchorScore(index, 2, top=3),
    "nearest": lambda index: NearestScore(index, 2, k=3),
    "direction": lambda index: DirectionScore(index, 2),
    "probe": lambda index: ProbeScore(fit_probe(index, [2])),
    "shift": lambda index: ShiftScore(index, 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def index(folder):
    step = EmbedLayers(str(folder), [2], position=POSITIONS, window=9)
    return ReferenceIndex.build(*reference_rows(6, 3), step, **FACTS)


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_list(mixed_rows(8, 0.2, 3))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"position": "last,last_prompt"}, "position 'mean,last_prompt' for the references, 'last"),
        ({"window": 12}, "window 9 for the references, 12 for the rows"),
        ({"chat_template": "plain"}, "chat_template_digest"),
        ({"dtype": "bfloat16"}, "dtype 'float32' for the references, 'bfloat16' for the rows"),
    ],
)
def test_rows_read_in_another_way_are_refused(folder, index, rows, name, other, said):
    read = embed_rows(rows, EmbedLayers(str(folder), [2], **({"position": POSITIONS, "window": 9} | other)))
    step = SCORES[name](index)
    with pytest.raises(DataError, match="read in another way than the references") as error:
        read.map(step, batched=True)
    assert said in error.value.found and "hf-safefilter reference build" in error.value.fix
    with pytest.raises(DataError, match="read in another way"):
        score_rows(read, step)
    with pytest.raises(DataError, match="read in another way"):
        step(read[0])


@pytest.mark.parametrize("name", SCORES)
def test_rows_read_alike_are_scored(folder, index, rows, name):
    read = embed_rows(rows, EmbedLayers(str(folder), [1, 2], position=POSITIONS, window=9))
    step = SCORES[name](index)
    scores = score_rows(read, step)[f"{name}_score"][:]
    assert np.isfinite(scores).all()
    assert score_rows(read.remove_columns("read_as"), step)[f"{name}_score"][:] == scores, (
        "who says nothing is believed"
    )


def test_further_positions_other_spans_and_another_place_of_the_model_are_no_other_way(folder, index, rows, tmp_path):
    elsewhere = shutil.copytree(folder, tmp_path / "copy")
    read = embed_rows(rows, EmbedLayers(str(elsewhere), [2], window=9, spans="all", too_long="drop"))
    assert np.isfinite(score_rows(read, LarfScore(index, 2))["larf_score"][:]).all()


def test_a_step_whose_model_is_gone_does_not_stand_in_the_way_of_the_message(folder, index, rows, tmp_path):
    gone = shutil.copytree(folder, tmp_path / "gone")
    EmbedLayers(str(gone), [2], window=7)
    shutil.rmtree(gone)
    read = embed_rows(rows, EmbedLayers(str(folder), [2], position=POSITIONS, window=12))
    with pytest.raises(DataError, match="read in another way") as error:
        score_rows(read, LarfScore(index, 2))
    assert "window 9 for the references, 12 for the rows" in error.value.found


def test_one_row_among_others_is_enough(folder, index, rows):
    read = embed_rows(rows, EmbedLayers(str(folder), [2], position=POSITIONS, window=9))
    changed = [*read["read_as"][:-1], "0" * 16]
    with pytest.raises(DataError, match="read in another way") as error:
        LarfScore(index, 2)(read.remove_columns("read_as").add_column("read_as", changed)[:])
    assert str(folder) in error.value.found
