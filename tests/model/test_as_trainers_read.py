"""What is read is what a trainer would train on: token ids and masks are those of TRL's own path for the same rows."""

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.model.chat_template import PINNED_DAY
from hf_safefilter.model.tokens import tokenise
from tests.small_tokenizers import byte_level
from tests.trainer_templates import TEMPLATES, without_tags

trl = pytest.importorskip("trl", reason="the train extra is not installed")

USER, ANSWER = {"role": "user", "content": "Who is Zelda?"}, {"role": "assistant", "content": "A princess of Hyrule."}
TALK = [
    USER,
    ANSWER,
    {"role": "user", "content": "And Link?"},
    {"role": "assistant", "content": "A hero. He  rides.\n"},
]
ROWS = {
    "one answer": {"messages": [USER, ANSWER]},
    "a system turn": {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]},
    "two answers": {"messages": TALK},
    "the same words in all turns": {
        "messages": [{"role": role, "content": "Yes?"} for role in ("user", "assistant", "user", "assistant")]
    },
    "letters of several bytes": {"messages": [USER, {"role": "assistant", "content": "姫 👑 é — ok"}]},
    "prompt and completion": {"prompt": [USER], "completion": [ANSWER]},
}
CALL = {"type": "function", "function": {"name": "list_files", "arguments": {"path": "~"}}}
TOOL = {"type": "function", "function": {"name": "list_files", "description": "List a folder.", "parameters": {}}}
WITH_TOOLS = {
    "messages": [
        {"role": "user", "content": "Tidy up."},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Look into it first."},
        {"role": "tool", "content": "a.txt b.txt"},
        {"role": "assistant", "content": "There are two files."},
    ],
    "tools": [TOOL],
}


def trained_by_trl(tokenizer, row, only_answers, folder):
    """Ids and labels of a row as SFTTrainer prepares it."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    args = trl.SFTConfig(
        output_dir=str(folder), report_to=[], max_length=None, assistant_only_loss=only_answers,
        use_cpu=True, bf16=False,
        completion_only_loss=False,
    )  # fmt: skip
    rows = Dataset.from_list([row], on_mixed_types="use_json")
    (made,) = trl.SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer).train_dataset
    return made["input_ids"], made.get("labels", made["input_ids"])


def read_by_us(tokenizer, row, **options):
    (tokens,) = tokenise(tokenizer, as_conversations([row]), **options)
    assert not tokens.reason
    labels = np.full(len(tokens.ids), -100)
    for span in tokens.spans:
        labels[span.start : span.stop] = tokens.ids[span.start : span.stop]
    return tokens.ids.tolist(), labels.tolist()


def of_the_day(template, call):
    """The template with the date as a text, or as the call that writes it."""
    return template.replace("DAY", "{{ strftime_now('%d %B %Y') }}" if call else PINNED_DAY.strftime("%d %B %Y"))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("row", ROWS)
def test_ids_and_masks_are_those_of_trl(name, row, tmp_path):
    theirs = byte_level(of_the_day(TEMPLATES[name], False))
    ours = byte_level(of_the_day(TEMPLATES[name], True))
    assert read_by_us(ours, ROWS[row]) == trained_by_trl(theirs, ROWS[row], True, tmp_path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_trl_without_tags_too_and_spans_nearly_those_of_the_tags(name, tmp_path):
    tagged, bare = TEMPLATES[name], without_tags(TEMPLATES[name])
    for row in ROWS.values():
        ids, labels = read_by_us(byte_level(of_the_day(bare, True)), row)
        assert ids == trained_by_trl(byte_level(of_the_day(bare, False)), row, False, tmp_path)[0]
        _, expected = read_by_us(byte_level(of_the_day(tagged, True)), row)
        apart = np.array(labels) != np.array(expected)
        answers = as_conversations([row])[0].messages
        assert apart.sum() <= 8 * len(answers), "whitespace, an empty thought, or the name of a channel"


@pytest.mark.parametrize("name", ["qwen"])
def test_tools_calls_and_reasoning_are_read_as_trl_reads_them(name, tmp_path):
    tokenizer = byte_level(TEMPLATES[name])
    ids, labels = read_by_us(tokenizer, WITH_TOOLS)
    assert (ids, labels) == trained_by_trl(tokenizer, WITH_TOOLS, True, tmp_path)
    said = tokenizer.decode([token for token in labels if token != -100])
    assert "list_files" in said and "Look into it first." in said and "There are two files." in said


def test_tools_are_read_from_json_text_and_template_options_from_the_row(tmp_path):
    import json

    tokenizer = byte_level("{% if mode %}<|head|>{{ mode }}{% endif %}" + TEMPLATES["qwen"])
    row = {"messages": [USER, ANSWER], "tools": json.dumps([TOOL]), "chat_template_kwargs": {"mode": "quick"}}
    ids, labels = read_by_us(tokenizer, row)
    assert (ids, labels) == trained_by_trl(tokenizer, row, True, tmp_path)
    assert tokenizer.decode(ids).startswith("<|head|>quick")


@pytest.mark.parametrize(
    "row", [{"text": "Once upon a time."}, {"prompt": "Who is Zelda?", "completion": " A princess."}]
)
def test_texts_end_as_trl_ends_them(row, tmp_path):
    tokenizer = byte_level(TEMPLATES["chatml"])
    ids, _ = read_by_us(tokenizer, row, chat_template="raw")
    assert ids == trained_by_trl(tokenizer, row, False, tmp_path)[0]


PUBLISHED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in PUBLISHED])
def test_published_templates_are_read_as_transformers_reads_them(path):
    """The templates that TRL carries, as they are installed here."""
    template = re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)",
        lambda call: repr(PINNED_DAY.strftime(call[2])),
        path.read_text(encoding="utf-8"),
    )
    if "content'][0]" in template or "content[0]" in template:
        pytest.skip("it takes content in parts alone")
    tokenizer = byte_level(template)
    words = set(re.findall(r"<\|?[^<>\s'\"{}]{1,40}\|?>|<[｜|][^<>]{1,40}[｜|]>|\[/?[A-Z_]+\]", template))
    known = {"<think>", "</think>", "<bos>", "<eos>"}
    tokenizer.add_special_tokens({"extra_special_tokens": sorted(words - known)})
    tagged = "endgeneration" in template
    read = 0
    for row in [*ROWS.values(), WITH_TOOLS]:
        turns = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        (tokens,) = tokenise(tokenizer, as_conversations([row]))
        if tokens.reason:
            assert tokens.reason in (
                "template_refused",
                "unread_tool_calls",
                "unread_reasoning_content",
                "unread_tools",
            )
            continue
        expected = tokenizer.apply_chat_template(
            turns, tools=row.get("tools"), tokenize=True, return_dict=True, return_assistant_tokens_mask=tagged
        )
        assert tokens.ids.tolist() == expected["input_ids"]
        if tagged:
            mask = np.zeros(len(tokens.ids), int)
            for span in tokens.spans:
                mask[span.start : span.stop] = 1
            assert mask.tolist() == expected["assistant_masks"]
        read += 1
    assert read >= 3
