"""Where tokens stand in their text: by a second route, decoding every beginning of it."""

import numpy as np
import pytest

from hf_safefilter.model import load
from hf_safefilter.model.source import ModelKey
from hf_safefilter.model.token_text import text_of_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return load.tokenizer(ModelKey("toy", load.resolve_revision("toy", None), "float32"))


TEXTS = [
    "",
    "a",
    "Two words, three.",
    "  spaces\n\nand lines\t",
    "\u00e9t\u00e9 \u00fcber \u2013 \u6f22\u5b57 \U0001f600\U0001f469\u200d\U0001f467 ok",
    "x" * 300,
    "a b " * 200,
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_starts_where_the_text_before_it_ends(tokenizer, text):
    def decoded(ids):
        return tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)

    ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
    whole, starts = text_of_tokens(tokenizer, ids)
    assert whole == decoded(ids)
    assert starts[0] == 0 and starts[-1] == len(whole) and (np.diff(starts) >= 0).all()
    beginnings = {at: decoded(ids[:at]) for at in range(len(ids) + 1)}
    between = [at for at, beginning in beginnings.items() if whole.startswith(beginning)]  # not within a character
    assert [starts[at] for at in between] == [len(beginnings[at]) for at in between]


def test_where_pieces_do_not_make_up_the_text_nothing_is_claimed():
    class Joining:
        """A tokenizer that writes two words between any two tokens, unless it is asked for few."""

        def decode(self, ids, **_):
            return "".join(chr(97 + number) for number in ids) + ("!" * 5 if len(ids) > 8 else "")

    whole, starts = text_of_tokens(Joining(), np.arange(12))
    assert whole == "abcdefghijkl!!!!!" and starts.tolist() == [0] * 12 + [17]
