"""EmbedLayers over the row cache, on the toy model: the same columns, hash and record, and far less work."""

import logging

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from processes import answer, start

from hf_safefilter import cache
from hf_safefilter.cache import SWITCH
from hf_safefilter.cache import store as stores
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.engine.local import embed_rows, score_stream_locally
from hf_safefilter.model import load
from hf_safefilter.references import SIDES, ReferenceIndex
from hf_safefilter.toy.corpus import mixed_rows

ROWS = [{"prompt": row["prompt"], "response": row["response"]} for row in mixed_rows(150, 0.2, 7)]
DISTINCT = [
    {"prompt": row["prompt"], "response": f"{row['response']} {n}"} for n, row in enumerate(mixed_rows(320, 0.2, 7))
]


@pytest.fixture
def work(monkeypatch):
    """Rows that reach the model."""
    from hf_safefilter.model import windows

    done = []
    tokenise = windows.tokenise
    monkeypatch.setattr(
        windows,
        "tokenise",
        lambda tokenizer, found, **options: done.extend(found) or tokenise(tokenizer, found, **options),
    )
    return done


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def uncached(step, rows, monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    found = step(columns(rows))
    monkeypatch.setenv(SWITCH, "on")
    return found


def same(found, expected, exact=True):
    assert list(found) == list(expected)
    for name, values in expected.items():
        if not name.startswith("emb_layer_"):
            assert list(found[name]) == list(values)
            continue
        for one, other in zip(found[name], values, strict=True):
            assert one.dtype == other.dtype == np.float16 and one.shape == other.shape
            if exact:
                np.testing.assert_array_equal(one, other)
            else:
                np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def another_process():
    cache.flush()
    stores._open.clear()


def test_one_batch_gives_the_columns_of_a_run_without_it_bit_for_bit(store, monkeypatch, work):
    """Rows of one batch are read in one piece once the pace is known, so that even the rounding is the same."""
    step = EmbedLayers("toy", layers=[2, "norm"])
    expected = uncached(step, ROWS, monkeypatch)
    step(columns(mixed_rows(40, 0.2, 1)))
    cold = step(columns(ROWS))
    same(cold, expected)
    another_process()
    work.clear()
    warm = step(columns(ROWS))
    same(warm, expected)
    assert not work


def test_map_of_rows_batches_and_formats_over_a_warm_store(store, work):
    step, table = EmbedLayers("toy", layers=[3]), Dataset.from_list(ROWS)
    expected = table.map(step, batched=True, new_fingerprint="cold")
    another_process()
    work.clear()
    for ways in ({"batched": True, "batch_size": 7}, {}, {"batched": True, "batch_size": 1000}):
        found = table.map(step, **ways, load_from_cache_file=False)
        assert found.features == expected.features
        assert found.with_format("arrow")[:].equals(expected.with_format("arrow")[:])
    assert not work


def test_the_hash_and_the_record_know_nothing_of_it(store, monkeypatch):
    step = EmbedLayers("toy", layers=[3])
    before = Hasher.hash(step), step.record(), step.describe()
    step(columns(ROWS[:20]))
    assert (Hasher.hash(step), step.record(), step.describe()) == before
    monkeypatch.setenv(SWITCH, "off")
    assert Hasher.hash(EmbedLayers("toy", layers=[3])) == before[0]


def test_one_percent_new_rows_are_all_that_is_read(store, work):
    step = EmbedLayers("toy", layers=[3])
    step(columns(ROWS[:-2]))
    work.clear()
    found = step(columns(ROWS[::-1]))
    assert len(work) == 2
    assert found["row_id"].tolist() == step(columns(ROWS))["row_id"].tolist()[::-1]


OPTIONS = [
    {},
    {"window": None},
    {"window": 9},
    {"spans": "all"},
    {"too_long": "drop"},
    {"ignore": ["reasoning_content"]},
    {"max_length": 60},
    {"dtype": "bfloat16"},
    {"chat_template": "plain"},
]


def test_every_option_that_changes_a_vector_has_rows_of_its_own(store, work):
    for given in OPTIONS:
        work.clear()
        EmbedLayers("toy", layers=[2], **given)(columns(ROWS[:70]))
        assert len(work) == 70, given
    assert len(list(store.iterdir())) == len(OPTIONS)
    work.clear()
    other = [{"ask": row["prompt"], "say": row["response"]} for row in ROWS[:70]]
    EmbedLayers("toy", layers=[2], columns={"prompt": "ask", "response": "say"})(columns(other))
    assert not work, "where the words stand changes nothing"


def test_each_position_is_read_once_whichever_comes_first(store, monkeypatch, work):
    rows = columns(ROWS[:70])
    EmbedLayers("toy", layers=[2])(rows)
    work.clear()
    EmbedLayers("toy", layers=[2], position="last_prompt,mean")(rows)
    assert len(work) == 70, "the second position is new"
    work.clear()
    step = EmbedLayers("toy", layers=[2], position="mean,last_prompt")
    found = step(rows)
    assert not work
    same(found, uncached(step, ROWS[:70], monkeypatch), exact=False)


def test_another_algorithm_shares_nothing(store, work):
    step, raised = EmbedLayers("toy", layers=[2]), EmbedLayers("toy", layers=[2])
    object.__setattr__(raised, "algorithm", step.algorithm + 1)
    for one in (step, raised):
        work.clear()
        one(columns(ROWS[:70]))
        assert len(work) == 70


@pytest.mark.parametrize(
    ("too_long", "reasons", "truncated"),
    [
        ("windows", ["", ""], [False, False]),
        ("cut", ["", "too_long"], [True, False]),
        ("drop", ["too_long", "too_long"], [False, False]),
    ],
)
def test_unreadable_and_long_rows_come_back_as_they_were(store, monkeypatch, work, too_long, reasons, truncated):
    rows = [
        *ROWS[:66],
        {"prompt": "Tell me.", "response": "again and again " * 400},
        {"prompt": "tell me " * 900, "response": "No."},
        {"prompt": "", "response": "An answer to nothing."},
        {"prompt": "Five?", "response": 5},
        {"prompt": "Five?", "response": "5"},
    ]
    step = EmbedLayers("toy", layers=[2], too_long=too_long)
    expected = uncached(step, rows, monkeypatch)
    assert expected["unscorable"].tolist()[66:] == [*reasons, "empty_prompt", "not_text", ""]
    assert expected["truncated"].tolist()[66:] == [*truncated, False, False, False]
    same(step(columns(rows)), expected, exact=False)
    another_process()
    work.clear()
    same(step(columns(rows)), expected, exact=False)
    assert not work


def test_preference_pairs_come_back_with_both_sides(store, monkeypatch, work):
    rows = [
        {"prompt": row["prompt"], "chosen": row["response"], "rejected": f"{row['response']} Or not."} for row in ROWS
    ]
    step = EmbedLayers("toy", layers=[2])
    expected = uncached(step, rows, monkeypatch)
    assert all({span["rejected"] for span in spans} == {False, True} for spans in expected["spans"])
    same(step(columns(rows)), expected, exact=False)
    another_process()
    work.clear()
    same(step(columns(rows)), expected, exact=False)
    assert not work


def test_a_row_that_overflows_in_one_layer_is_lost_in_all_but_only_where_that_layer_is_asked_for(store, monkeypatch):
    from hf_safefilter.model import forward

    read = forward.read_layers

    def overflow(trunk, sequences, layers, *rest):
        vectors = read(trunk, sequences, layers, *rest)
        if 5 in layers:
            vectors[5][0, 3] = np.inf
        return vectors

    monkeypatch.setattr(forward, "read_layers", overflow)
    rows = columns(ROWS[:1])
    assert EmbedLayers("toy", layers=[2])(rows)["unscorable"].tolist() == [""]
    for _ in range(2):
        both = EmbedLayers("toy", layers=[2, 5])(rows)
        assert both["unscorable"].tolist() == ["non_finite"] and both["spans"] == [[]]
        assert [len(both[name][0]) for name in ("emb_layer_2", "emb_layer_5")] == [0, 0]
        alone = EmbedLayers("toy", layers=[2])(rows)
        assert alone["unscorable"].tolist() == [""]
        assert len(alone["emb_layer_2"][0]) and np.isfinite(alone["emb_layer_2"][0]).all()


def test_references_are_read_once_in_float32_and_their_digest_does_not_tell(store, monkeypatch, work):
    def built():
        sides = ROWS[:30], ROWS[30:60]
        index = ReferenceIndex.build(*sides, EmbedLayers("toy", layers=[2, 3]), license="mit", source="the tests")
        return index.digest, {side: vectors for side, vectors in zip(SIDES, index.vectors(3), strict=True)}

    monkeypatch.setenv(SWITCH, "off")
    plain, vectors = built()
    monkeypatch.setenv(SWITCH, "on")
    assert not store.exists()
    assert built()[0] == plain
    another_process()
    work.clear()
    digest, again = built()
    assert digest == plain and not work
    for side, values in vectors.items():
        assert again[side].dtype == np.float32
        np.testing.assert_array_equal(again[side], values)


@pytest.mark.parametrize("before", ["a row less", "all layers", "another position", "attention"])
def test_the_digest_of_references_does_not_tell_what_was_read_before(store, monkeypatch, before):
    """The last digit of a vector depends on what is read in one call, and the digest of references shows it."""

    def digest(count=30, layers=(2, 3), **options):
        sides = ROWS[:count], ROWS[30:60]
        embed = EmbedLayers("toy", layers=list(layers), **options)
        return ReferenceIndex.build(*sides, embed, license="mit", source="the tests").digest

    monkeypatch.setenv(SWITCH, "off")
    plain = digest()
    monkeypatch.setenv(SWITCH, "on")
    if before == "a row less":
        digest(29)
    elif before == "all layers":
        digest(layers=(1, 2, 3, 4))
    elif before == "another position":
        digest(position="mean,last_prompt")
    else:
        digest(attn="eager")
    assert digest() == plain


def test_duplicates_among_many_references_do_not_tell_either(store, monkeypatch):
    """Rows are read in parts of some hundred: without the copies the parts would be others."""
    several = [*DISTINCT[:10] * 5, *DISTINCT[10:280]]

    def digest():
        embed = EmbedLayers("toy", layers=[2, 3])
        return ReferenceIndex.build(several, DISTINCT[300:320], embed, license="mit", source="the tests").digest

    monkeypatch.setenv(SWITCH, "off")
    plain = digest()
    monkeypatch.setenv(SWITCH, "on")
    assert digest() == plain


def test_references_and_rows_do_not_share_their_vectors(store, work):
    step = EmbedLayers("toy", layers=[2])
    found, _ = step.vectors(ROWS[:5])
    assert found.vectors[2].dtype == np.float32
    work.clear()
    rows = step(columns(ROWS[:5]))
    assert len(work) == 5 and rows["emb_layer_2"][0].dtype == np.float16
    work.clear()
    step.vectors(ROWS[:5]), step(columns(ROWS[:5]))
    assert not work
    step.vectors(ROWS[:5], fresh=True)
    assert len(work) == 5


def test_clamped_values_are_counted_when_they_are_read(store, monkeypatch, caplog):
    from hf_safefilter.model import forward

    def huge(trunk, sequences, layers, *_):
        return {1: np.full((sum(len(one.reads) for one in sequences), trunk.hidden_size), 1e9, np.float32)}

    monkeypatch.setattr(forward, "read_layers", huge)
    with caplog.at_level(logging.WARNING):
        found = EmbedLayers("toy", layers=[1])(columns(ROWS[:1]))
    assert len(found["emb_layer_1"][0]) and (found["emb_layer_1"][0] == 65504).all()
    assert "values beyond the range of float16" in caplog.text


def test_a_changed_model_folder_never_gives_rows_of_the_old_one(store, tmp_path, work):
    from small_models import save_small_model

    folder = save_small_model(tmp_path / "model")
    before = EmbedLayers(str(folder), layers=[1])(columns(ROWS[:70]))
    work.clear()
    load._trunks.clear()
    after = EmbedLayers(str(save_small_model(folder, seed=1)), layers=[1])(columns(ROWS[:70]))
    assert len(work) == 70
    assert not np.array_equal(np.concatenate(before["emb_layer_1"]), np.concatenate(after["emb_layer_1"]))


def test_a_folder_that_changes_under_a_job_stops_it_even_if_every_row_is_known(store, tmp_path):
    """The step is pinned to the files it was made with; a process that starts later finds others."""
    from small_models import save_small_model

    from hf_safefilter import embed
    from hf_safefilter.errors import IntegrityError

    folder = save_small_model(tmp_path / "model")
    step = EmbedLayers(str(folder), layers=[1])
    step(columns(ROWS[:70]))
    save_small_model(folder, seed=1)
    another_process()
    for table in (embed._space, load.tokenizer, load.model_config):
        table.cache_clear()
    with pytest.raises(IntegrityError, match="its files have changed"):
        step(columns(ROWS[:70]))


# Other processes

HEAD = """
import json, sys
import multiprocess
import datasets
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.engine.local import embed_rows, score_stream_locally
from hf_safefilter.model import load
from hf_safefilter.toy.corpus import mixed_rows
datasets.disable_progress_bars()
rows = datasets.Dataset.from_list([{"prompt": r["prompt"], "response": r["response"]} for r in mixed_rows(150, 0.2, 7)])
step = EmbedLayers("toy", layers=[3])
"""


def test_a_process_leaves_its_last_rows_behind_and_the_next_loads_no_model(store, tmp_path):
    embed = HEAD + "found = rows.select(range(40)).map(step)\nprint(json.dumps(len(load._trunks)))"
    assert answer(start(embed, HF_DATASETS_CACHE=str(tmp_path / "one"))) == 1
    assert answer(start(embed, HF_DATASETS_CACHE=str(tmp_path / "two"))) == 0


def test_workers_of_map_leave_theirs_too(store, tmp_path, work):
    """Twenty rows a worker, row by row: fewer than are written at once, so all are written as the worker ends."""
    code = """
def main():
    multiprocess.set_start_method("spawn", force=True)
    rows.select(range(40)).map(step, num_proc=2)
    print(json.dumps(True))

if __name__ == "__main__":
    main()
"""
    script = tmp_path / "script.py"
    script.write_text(HEAD + code)
    runs = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    assert answer(start(runs, HF_DATASETS_CACHE=str(tmp_path / "cache")))
    EmbedLayers("toy", layers=[3])(columns(ROWS[:40]))
    assert not work


def test_ids_are_those_of_the_rows(store):
    from hf_safefilter.data.row_ids import row_id

    step = EmbedLayers("toy", layers=[1])
    for _ in range(2):
        assert step(columns(ROWS[:9]))["row_id"].tolist() == [row_id(one) for one in as_conversations(ROWS[:9])]


def test_what_was_kept_is_said_and_counted_once(store, caplog):
    embed = EmbedLayers("toy", [2])
    with caplog.at_level(logging.INFO, logger="hf_safefilter"):
        embed_rows(Dataset.from_list([*ROWS[:20], *ROWS[:5]]), embed)
        assert "resumed" not in caplog.text
        embed_rows(Dataset.from_list(ROWS[:30]), embed)
        assert "resumed: 20 of 30 distinct rows from the store" in caplog.text
        caplog.clear()
        score_stream_locally(Dataset.from_list(ROWS[:30]).to_iterable_dataset(), embed, [])
        assert "resumed: 30 of 30 distinct rows from the store" in caplog.text
