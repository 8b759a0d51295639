"""What a row teaches: its response and the token that ends it, and nothing that the row's author smuggled in."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from rows_and_models import fox_rows, safe_rows
from small_models import small_tokenizer

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.errors import DataError
from hf_safefilter.scores.seal.losses import sequence_losses
from hf_safefilter.scores.seal.schedule import Schedule
from hf_safefilter.scores.seal.training_rows import Labelled, read_rows, require_usable


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def read(rows, tokenizer, max_length=256, chat_template=None):
    return read_rows(rows, tokenizer, columns=None, max_length=max_length, chat_template=chat_template)


def test_labels_are_the_response_and_the_end_of_its_turn(tokenizer):
    (one,) = read([{"prompt": "Where is the fox?", "response": "In the tree."}], tokenizer).examples
    assert tokenizer.decode(one.ids[one.labels]) == "In the tree.<|end|>"
    assert tokenizer.decode(one.ids) == "<s><|user|>Where is the fox?<|end|><|assistant|>In the tree.<|end|>"


def test_every_answer_that_is_trained_on_is_learned(tokenizer):
    turns = [("user", "Where is the fox?"), ("assistant", "In the tree."), ("user", "And the owl?")]
    turns = [{"role": role, "content": content} for role, content in [*turns, ("assistant", "With the mole.")]]
    aside = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Away.", "weight": 0}]
    (one,) = read([{"messages": turns}], tokenizer).examples
    assert tokenizer.decode(one.ids[one.labels]) == "In the tree.<|end|>With the mole.<|end|>"
    (other,) = read([{"messages": [*aside, *turns]}], tokenizer).examples
    assert tokenizer.decode(other.ids[other.labels]) == "In the tree.<|end|>With the mole.<|end|>"


def test_control_tokens_in_a_row_are_text(tokenizer):
    rows = [{"prompt": "Hi<|end|><|assistant|>", "response": "Yes.<|end|><|user|>Again"}]
    (one,) = read(rows, tokenizer).examples
    control = set(tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|assistant|>"]))
    assert [int(at) for at in one.ids if int(at) in control] == [3, 6, 4, 6]
    assert one.labels[-1] and tokenizer.decode(one.ids[one.labels]) == "Yes.<|end|><|user|>Again<|end|>"


def test_rows_are_in_the_order_of_their_ids_whatever_they_came_in(tokenizer):
    rows = fox_rows()
    listed = read(rows, tokenizer)
    assert list(listed.ids) == sorted(row_id(one) for one in as_conversations(rows))
    ds = Dataset.from_list(rows[::-1])
    half = DatasetDict({"a": ds.select(range(4)), "b": ds.select(range(4, len(rows)))})
    for other in (ds, half, ds.to_iterable_dataset(), ds.shuffle(seed=1).filter(lambda _: True)):
        result = read(other, tokenizer)
        assert result.ids == listed.ids
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(result.examples, listed.examples, strict=True))


def test_what_cannot_be_weighed_is_counted(tokenizer):
    rows = [*fox_rows(3), *fox_rows(2), {"prompt": "Hi", "response": " "}, {"prompt": "Hi " * 300, "response": "Yes."},
            {"prompt": "", "response": "Yes."}, {"prompt": "Long", "response": "on " * 300}]  # fmt: skip
    result = read(rows, tokenizer)
    assert result.counts == {
        "rows": 9, "duplicates": 2, "unscorable: empty_response": 1, "unscorable: too_long": 2,
        "unscorable: empty_prompt": 1,
    }  # fmt: skip
    assert len(result.ids) == 3
    assert sorted(result.unfit.values()) == ["empty_prompt", "empty_response", "too_long", "too_long"]


def test_a_row_without_a_label_token():
    # one token of plain text, to a tokenizer that puts nothing before or after it: there is nothing to predict it from
    tokenizer = small_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.eos_token = None
    result = read([{"text": "a"}, {"text": "a fox and an owl"}], tokenizer)
    assert list(result.unfit.values()) == ["no_label_tokens"] and len(result.ids) == 1
    assert result.examples[0].labels.tolist() == [False] + [True] * (len(result.examples[0].ids) - 1)


@pytest.mark.parametrize(
    ("rows", "safe", "says"),
    [
        ([], safe_rows(), "there are no rows"),
        (fox_rows(), [], "there are no trusted safe rows"),
        (fox_rows(), [{"prompt": "Hi", "response": ""}], "none of the trusted safe rows has a response"),
        ([{"prompt": "Hi", "response": ""}] * 2, safe_rows(), "none of the rows has a response"),
        (fox_rows(), [*safe_rows(), *fox_rows(2)], "2 of the trusted safe rows are also among the rows"),
    ],
)
def test_sides_that_cannot_be_used(tokenizer, rows, safe, says):
    with pytest.raises(DataError, match=says) as refused:
        require_usable(read(rows, tokenizer), read(safe, tokenizer))
    assert "fix" in str(refused.value)


class Fixed(torch.nn.Module):
    """Gives the logits that it was made with, whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.table = torch.nn.Parameter(logits)

    def forward(self, input_ids, attention_mask, use_cache):
        self.mask = attention_mask
        return type("Output", (), {"logits": self.table[: len(input_ids), : input_ids.shape[1]]})


def test_the_loss_is_the_mean_over_the_labels():
    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    examples = [
        Labelled(np.array([1, 4, 7, 2, 8, 3], np.int32), np.array([0, 1, 0, 1, 0, 1], bool)),
        Labelled(np.array([5, 6, 1], np.int32), np.array([0, 1, 0], bool)),
    ]
    model = Fixed(logits)
    result = sequence_losses(model, examples).detach().numpy()
    chances = torch.log_softmax(logits.double(), -1).numpy()
    expected = [-(chances[0, 0, 4] + chances[0, 2, 2] + chances[0, 4, 3]) / 3, -chances[1, 0, 6]]
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert model.mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize(("rows", "safe", "batch"), [(10, 10, 4), (10, 3, 4), (7, 25, 7), (5, 2, 8)])
def test_an_epoch_meets_each_row_once_and_safe_rows_go_round(rows, safe, batch):
    schedule = Schedule(rows, safe, batch, 3, seed=5)
    orders = []
    for epoch in range(3):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        met = [int(at) for step in steps for at in schedule.rows_at(step)]
        sizes = {len(schedule.rows_at(step)) for step in steps}
        assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1
        assert sorted(met) == list(range(rows)) and {schedule.epoch_of(step) for step in steps} == {epoch}
        orders.append(met)
    assert rows < 5 or orders[0] != orders[1]
    beside = [int(at) for step in range(schedule.steps) for at in schedule.safe_at(step)]
    assert len(beside) == 3 * rows
    for lap in range(3 * rows // safe):
        assert sorted(beside[lap * safe : (lap + 1) * safe]) == list(range(safe))
    again = Schedule(rows, safe, batch, 3, seed=6)
    assert again.rows_at(0).tolist() != schedule.rows_at(0).tolist() or rows < 6
