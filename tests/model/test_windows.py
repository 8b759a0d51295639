"""Where rows are read, against the tokens of rows whose every token is another."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML, byte_level, talk

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.model.reading_options import ReadingOptions, tokens_of_first
from hf_safefilter.model.tokens import Span, Tokens, tokenise
from hf_safefilter.model.windows import plan_reads, row_reads

WINDOWS = st.one_of(st.none(), st.integers(2, 40))
LIMITS = st.integers(8, 120)
ALL_POSITIONS = ("mean", "last", "last_content", "last_prompt", "first_1", "first_7")
POSITIONS = st.lists(st.sampled_from(ALL_POSITIONS), min_size=1, max_size=4, unique=True)


@st.composite
def rows(draw, first: int = 1, most: int = 80) -> Tokens:
    """Spans of 1 to `most` tokens, with up to 40 tokens before, between and after them; no id occurs twice."""
    spans, at = [], draw(st.integers(first, 40))
    for turn in range(draw(st.integers(1, 4))):
        width = draw(st.integers(1, most))
        content = draw(st.integers(1, width))
        spans.append(Span(2 * turn + 1, at, at + content, at + width))
        at += width + draw(st.integers(0, 40))
    ids = 1000 + np.random.default_rng(at).permutation(at)
    return Tokens(ids.astype(np.int32), spans)


def read_ids(found) -> list[list[int]]:
    """The ids under every read of a row, in the order in which picks count them."""
    return [one.ids[start:stop].tolist() for one in found.sequences for start, stop in one.reads]


def expected_ids(tokens: Tokens, position: str, window: tuple[int, int], widest: int) -> list[int]:
    """The ids that a position stands for, of the span that holds the window."""
    (span,) = (one for one in tokens.spans if one.start <= window[0] < one.stop)
    ids = tokens.ids.tolist()
    if position == "mean":
        return ids[window[0] : window[1]]
    if position == "last":
        return [ids[span.stop - 1]]
    if position == "last_content":
        return [ids[span.content_stop - 1]]
    if position == "last_prompt":
        return [ids[span.start - 1]]
    return ids[span.start : span.stop][: min(tokens_of_first(position), widest)]


def bounds(found, rejected: bool = False) -> list[tuple[int, int]]:
    return [(int(one["start"]), int(one["stop"])) for one in found.spans if one["rejected"] == rejected]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tokens=rows(), window=WINDOWS, limit=st.one_of(st.none(), LIMITS))
def test_every_token_of_every_span_lies_in_a_window_and_no_other_token(tokens, window, limit):
    found = row_reads([tokens], ("mean",), window=window, limit=limit)
    held = {token for start, stop in bounds(found) for token in range(start, stop)}
    assert held == {token for span in tokens.spans for token in range(span.start, span.stop)}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tokens=rows(), window=st.integers(2, 40))
def test_windows_are_as_wide_as_allowed_and_follow_one_another_closely(tokens, window):
    found = row_reads([tokens], ("mean",), window=window)
    for span in tokens.spans:
        own = [(start, stop) for start, stop in bounds(found) if span.start <= start < span.stop]
        width = min(window, span.stop - span.start)
        assert own == sorted(own) and len(set(own)) == len(own)
        assert {stop - start for start, stop in own} == {width}
        assert own[0][0] == span.start and own[-1][1] == span.stop
        steps = [later[0] - earlier[0] for earlier, later in zip(own, own[1:], strict=False)]
        assert all(1 <= step <= max(1, window * 5 // 6) for step in steps)
        assert set(steps[:-1]) <= {max(1, window * 5 // 6)}, "no more windows than the overlap asks for"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tokens=rows())
def test_without_a_window_a_span_is_read_whole(tokens):
    found = row_reads([tokens], ("mean",))
    assert bounds(found) == [(span.start, span.stop) for span in tokens.spans]
    assert [int(one["turn"]) for one in found.spans] == [span.turn for span in tokens.spans]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tokens=rows(), window=WINDOWS, limit=st.one_of(st.none(), LIMITS), positions=POSITIONS)
def test_picks_point_to_the_tokens_of_their_span_and_position(tokens, window, limit, positions):
    found = row_reads([tokens], positions, window=window, limit=limit)
    read = read_ids(found)
    widest = limit // 2 if limit is not None and len(tokens.ids) > limit else len(tokens.ids)
    assert found.picks.shape == (len(found.spans), len(positions)) and found.picks.dtype == np.int64
    for at, one in zip(found.picks, bounds(found), strict=True):
        for pick, position in zip(at, positions, strict=True):
            assert read[pick] == expected_ids(tokens, position, one, widest)
    assert sorted(set(found.picks.ravel().tolist())) == list(range(len(read))), "nothing is read for nobody"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tokens=rows(), window=WINDOWS, limit=LIMITS, positions=POSITIONS)
def test_a_row_too_long_is_read_in_its_head_and_a_piece_of_it(tokens, window, limit, positions):
    assume(len(tokens.ids) > limit)
    place = {token: at for at, token in enumerate(tokens.ids.tolist())}
    found = row_reads([tokens], positions, window=window, limit=limit)
    assert not found.truncated and len(found.sequences) > 0
    for one in found.sequences:
        at = [place[token] for token in one.ids.tolist()]
        seams = [(a, b) for a, b in zip(at, at[1:], strict=False) if b != a + 1]
        assert 0 < len(at) <= limit
        assert at[0] == 0 and len(seams) <= 1 and all(a < b for a, b in seams)
        for start, stop in one.reads:
            assert at[start:stop] == list(range(at[start], at[stop - 1] + 1)), "no read lies over the seam"
            before = [token for token in at[:start] if at[start] - limit // 4 <= token]
            assert len(before) >= min(at[start], limit // 4), "it has its context"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tokens=rows(), window=WINDOWS, spare=st.integers(0, 9), too_long=st.sampled_from(["windows", "drop", "cut"]))
def test_a_row_that_fits_is_one_sequence_whatever_is_done_with_longer_ones(tokens, window, spare, too_long):
    limit = len(tokens.ids) + spare
    found = row_reads([tokens], ("mean", "last"), window=window, limit=limit, too_long=too_long)
    free = row_reads([tokens], ("mean", "last"), window=window)
    (one,) = found.sequences
    assert one.ids.tolist() == tokens.ids.tolist()
    assert (one.reads, found.picks.tolist()) == (free.sequences[0].reads, free.picks.tolist())
    assert (found.reason, found.truncated) == ("", False)


def test_few_sequences_are_read_of_a_long_row():
    tokens = Tokens(np.arange(1000, dtype=np.int32), [Span(1, 10, 999, 1000)])
    found = row_reads([tokens], ("mean",), window=18, limit=100)
    assert len(found.sequences) <= 1000 // (100 - 2 * 25 - 18) + 1  # head and context are read again each time


@settings(max_examples=50, deadline=None, derandomize=True)
@given(tokens=rows(), window=WINDOWS, limit=LIMITS)
def test_a_row_too_long_can_be_dropped(tokens, window, limit):
    assume(len(tokens.ids) > limit)
    found = row_reads([tokens], ("mean", "last"), window=window, limit=limit, too_long="drop")
    assert (found.reason, found.sequences, len(found.spans)) == ("too_long", [], 0)
    assert found.picks.shape == (0, 2)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tokens=rows(), window=WINDOWS, limit=LIMITS)
def test_a_row_too_long_can_be_cut_and_is_read_like_a_row_that_ends_there(tokens, window, limit):
    assume(len(tokens.ids) > limit)
    found = row_reads([tokens], ALL_POSITIONS, window=window, limit=limit, too_long="cut")
    left = [span for span in tokens.spans if span.start < limit]
    if not left:
        assert (found.reason, found.sequences) == ("too_long", [])
        return
    ended = [Span(turn, start, min(content, limit), min(stop, limit)) for turn, start, content, stop in left]
    expected = row_reads([Tokens(tokens.ids[:limit], ended)], ALL_POSITIONS, window=window)
    assert found.truncated and not expected.truncated
    assert found.sequences[0].ids.tolist() == tokens.ids[:limit].tolist() and len(found.sequences) == 1
    assert found.sequences[0].reads == expected.sequences[0].reads
    assert (found.spans == expected.spans).all() and (found.picks == expected.picks).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(chosen=rows(), rejected=rows(), window=WINDOWS, limit=LIMITS, positions=POSITIONS)
def test_both_sides_of_a_pair_are_read_as_they_are_alone(chosen, rejected, window, limit, positions):
    both = row_reads([chosen, rejected], positions, window=window, limit=limit)
    alone = [row_reads([side], positions, window=window, limit=limit) for side in (chosen, rejected)]
    assert [bounds(both, side) for side in (False, True)] == [bounds(one) for one in alone]
    assert both.spans["rejected"].tolist() == [side for side, one in enumerate(alone) for _ in one.spans]
    read, parts = read_ids(both), [read_ids(one) for one in alone]
    expected = [[parts[side][pick] for pick in picks] for side, one in enumerate(alone) for picks in one.picks]
    assert [[read[pick] for pick in picks] for picks in both.picks] == expected


@pytest.mark.parametrize("first", [True, False])
def test_a_pair_of_which_one_side_cannot_be_read_is_not_read(first):
    good = Tokens(np.arange(9, dtype=np.int32), [Span(1, 3, 8, 9)])
    sides = [good, Tokens.unread("control_token")]
    found = row_reads(sides if first else sides[::-1], ("mean", "last"))
    assert (found.reason, found.sequences, len(found.spans), found.picks.shape) == ("control_token", [], 0, (0, 2))


def test_a_pair_of_which_one_side_is_cut_counts_as_cut():
    short = Tokens(np.arange(9, dtype=np.int32), [Span(1, 3, 8, 9)])
    long = Tokens(np.arange(30, dtype=np.int32), [Span(1, 3, 29, 30)])
    assert row_reads([short, long], ("mean",), limit=10, too_long="cut").truncated
    assert row_reads([short, long], ("mean",), limit=10, too_long="drop").reason == "too_long"


def test_a_span_that_begins_the_row_has_no_prompt():
    tokens = Tokens(np.arange(9, dtype=np.int32), [Span(0, 0, 8, 9)])
    assert row_reads([tokens], ("mean", "last_prompt")).reason == "no_prompt"
    assert row_reads([tokens], ("mean", "last")).reason == ""


def test_reads_that_several_spans_and_positions_share_are_read_once():
    tokens = Tokens(np.arange(40, dtype=np.int32), [Span(1, 3, 38, 39)])
    found = row_reads([tokens], ("last", "mean", "last_content"), window=18)
    assert len(bounds(found)) == 3
    assert found.sequences[0].reads == ((3, 21), (18, 36), (21, 39), (37, 38), (38, 39))
    assert found.picks.tolist() == [[4, 0, 3], [4, 1, 3], [4, 2, 3]]


# Conversations


TOKENIZER = byte_level(CHATML)
ASKED, SAID = ("user", "Who is the hero?"), ("assistant", "Link rides home through the rain. " * 4)


def planned(rows, limit=None, **options):
    return plan_reads(rows, TOKENIZER, ReadingOptions("toy", **options), limit)


def test_conversations_are_read_where_their_tokens_say():
    row = talk(ASKED, SAID, ("user", "Sure?"), ("assistant", "Yes."))
    tokens = tokenise(TOKENIZER, [row])[0]
    (found,) = planned([row], position="mean,last", window=10)
    expected = row_reads([tokens], ("mean", "last"), window=10)
    assert (found.spans == expected.spans).all() and (found.picks == expected.picks).all()
    assert [one.reads for one in found.sequences] == [one.reads for one in expected.sequences]
    assert {int(turn) for turn in found.spans["turn"]} == {1, 3}


def test_all_turns_are_read_when_asked_for():
    (found,) = planned([talk(("system", "Be brief."), ASKED, SAID)], spans="all", window=None)
    assert found.spans["turn"].tolist() == [0, 1, 2]


def test_a_length_that_is_asked_for_takes_the_place_of_the_models_own():
    row = talk(ASKED, SAID)
    long = len(tokenise(TOKENIZER, [row])[0].ids)
    by_model, by_user, neither = (
        planned([row], limit, max_length=asked)[0] for limit, asked in ((16, None), (long, 16), (16, long))
    )
    lengths = [[len(one.ids) for one in found.sequences] for found in (by_model, by_user)]
    assert lengths[0] == lengths[1] and max(lengths[0]) <= 16
    assert [len(one.ids) for one in neither.sequences] == [long]
    assert planned([row], 16, too_long="drop")[0].reason == "too_long"


def test_rows_and_pairs_keep_their_order():
    pair, single, bad = as_conversations(
        [
            {"prompt": "Who?", "chosen": "Link", "rejected": "Zelda rides"},
            {"prompt": "Who?", "response": "Link"},
            {"prompt": "Who?", "response": ""},
        ]
    )
    found = planned([single, pair, bad, pair], window=None)
    assert [len(one.sequences) for one in found] == [1, 2, 0, 2]
    assert [one.spans["rejected"].tolist() for one in found] == [[False], [False, True], [], [False, True]]
    assert [one.reason for one in found] == ["", "", "empty_response", ""]
    words = [TOKENIZER.decode(ids) for ids in read_ids(found[1])]
    assert words == ["Link<|end|>", "Zelda rides<|end|>"]
