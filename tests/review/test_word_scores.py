"""The words of a row have the scores of their tokens, whose mean is the score of the span."""

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter import EmbedLayers
from hf_safefilter.data.batch import Batch
from hf_safefilter.engine.local import score_rows
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.review.review import Review
from hf_safefilter.review.word_scores import _by_word
from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.scores import make_score
from review.scored_folder import HOSTILE, UNREAD


@pytest.fixture(params=["probe", "shift"])
def method(request):
    return request.param


@pytest.fixture
def review(scored, tmp_path, method):
    return Review.of(scored[0], tmp_path / "decisions.jsonl", by=f"{method}_score", drop_count=10)


def test_the_mean_over_the_tokens_of_a_span_is_the_score_of_its_mean(review, scored, method):
    """By a second route: the stored mean of the span, through the same score."""
    step = next(step for step in review.saved.steps if getattr(step, "METHOD", "") == method)
    reader = next(step for step in review.saved.steps if isinstance(step, EmbedLayers))
    for place in (0, 5, 12):
        row = review.rows.row(place)
        batch = Batch(row.with_format("arrow")[:])
        whole = step.span_scores(step.vectors(batch).values)
        read = reader.token_vectors(row)
        from hf_safefilter.review.word_scores import _as_batch

        each = step.span_scores(step.vectors(_as_batch(read, reader, batch)).values)
        for span, score in zip(batch.spans().row(0), whole, strict=True):
            mine = (read.spans["turn"] == span["turn"]) & (read.spans["start"] >= span["start"])
            mine &= read.spans["stop"] <= span["stop"]
            assert mine.sum() == span["stop"] - span["start"]
            assert each[mine].mean() == pytest.approx(score, abs=0.02)  # means are stored in float16
            assert np.ptp(each[mine]) > 0.1


def test_the_words_are_those_of_the_answer(review, scored, method):
    said = review.row(5, text=True)["sides"][0]["turns"][1]["text"]
    body = review.words(5)
    (turn,) = body["turns"]
    assert body["method"] == method and turn["turn"] == 1
    assert "".join(turn["words"]).startswith(said) and len(turn["words"]) == len(turn["scores"])
    assert all(score is not None and np.isfinite(score) for score in turn["scores"])
    assert turn["words"][-1] == "<|end|>" and "".join(turn["words"][:-1]) == said  # what closes it is a word of its own


def test_each_answer_has_its_words(review):
    assert [turn["turn"] for turn in review.words(0)["turns"]] == [1, 3]


def test_a_hostile_row_is_shown_as_its_text_is(review):
    said = review.row(HOSTILE, text=True)["sides"][0]["turns"][1]["text"]
    (turn,) = review.words(HOSTILE)["turns"]
    joined = "".join(turn["words"])
    assert "\u202e" not in joined and "\x1b" not in joined
    assert "".join(turn["words"][:-1]).split() == said.split()


def test_a_row_that_cannot_be_read_and_scores_of_no_words_say_so(review, tmp_path):
    with pytest.raises(DataError, match="empty_response"):
        review.words(UNREAD)
    with pytest.raises(OptionError, match="no row 60"):
        review.words(60)
    step = make_score("length", {})
    rows = Dataset.from_list([{"prompt": "a", "response": "b" * size} for size in range(1, 9)])
    save_rows(score_rows(rows, step), tmp_path / "scored", [step], name="rows", revision="none")
    with pytest.raises(OptionError, match="does not score what a model reads"):
        Review.of(tmp_path / "scored", tmp_path / "more.jsonl", by="length_score").words(1)


def test_tokens_belong_to_the_word_they_begin_in():
    text, starts = " one  two\nthree", np.array([0, 2, 4, 5, 10, 15])  # " o", "ne", " ", " two\n", "three"
    words, scores = _by_word(text, starts, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert words == [" one  ", "two\n", "three"] and scores == [2.0, 4.0, 5.0]
    words, scores = _by_word(text, starts, np.array([1.0, np.nan, np.nan, np.nan, 5.0]))
    assert scores == [1.0, None, 5.0]
    assert _by_word("", np.array([0]), np.empty(0)) == ([], [])


def test_a_password_is_hidden_even_where_its_tokens_are_not_whole():
    text = "see https://me:secret@example.com/x and Authorization: Bearer abcdefghijklmnopqrstuvwxyz end"
    starts = np.arange(len(text) + 1)
    words, scores = _by_word(text, starts, np.ones(len(text)))
    assert "secret" not in "".join(words) and "mnopq" not in "".join(words) and set(scores) <= {1.0, None}


def test_where_what_is_shown_has_other_words_all_of_it_is_one():
    text = "a \u200b b"
    words, scores = _by_word(text, np.arange(len(text) + 1), np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert words == ["a  b"] and scores == [3.0]
