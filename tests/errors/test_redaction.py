"""What is shown: no secrets, nothing that steers a terminal; and what is none of that stays as it is."""

import json

import pytest

from hf_safefilter.cli.output import Format, Printer
from hf_safefilter.errors import DataError
from hf_safefilter.errors.redaction import everywhere, redacted, shown

TOKEN = "hf_" + "Ab3" * 12

HIDDEN = [
    ("https://me:pw@host/x", "https://***@host/x"),
    ("https://me:p@w@host/x", "https://***@host/x"),
    ("https:/me:pw@host/x", "https:/***@host/x"),
    ("c:/me@work/x and a:/b:c@d", "c:/me@work/x and a:/b:c@d"),
    ("https://me:p/w@host/x", "https://***@host/x"),
    ("https://:pw@host", "https://***@host"),
    ("https://token@host/x", "https://***@host/x"),
    ("see s3+http://a:b@c:9000/d?x=1.", "see s3+http://***@c:9000/d?x=1."),
    ("https://me:" + "a/" * 1500 + "@host/x", "https://***@host/x"),
    ("https://" + "t" * 9000 + "@host/x", "https://***@host/x"),
    ("https://host/x?token=abc&page=2", "https://host/x?token=***&page=2"),
    ("https://host/x?page=2&API_KEY=abc#top", "https://host/x?page=2&API_KEY=***#top"),
    ("https://host/x?X-Amz-Signature=abc", "https://host/x?X-Amz-Signature=***"),
    ("https://host/#access_token=abc", "https://host/#access_token=***"),
    ("Authorization: Basic dXNlcjpwdw==", "Authorization: Basic ***"),
    ("{'authorization': 'Bearer abc.def'}", "{'authorization': 'Bearer ***'}"),
    (f"HF_TOKEN={TOKEN}", "HF_TOKEN=hf_***"),
    (f"({TOKEN})", "(hf_***)"),
    ("ghp_" + "a" * 36, "ghp_***"),
    ("github_pat_" + "a1_" * 20, "github_pat_***"),
    ("sk-proj-" + "a1-" * 10, "sk-***"),
    ("AKIAABCDEFGHIJKLMNOP", "AKIA***"),
]

KEPT = [
    "https://huggingface.co/datasets/tatsu-lab/alpaca",
    "https://host:8080/@someone/a@b",
    "https://medium.com/@someone/post",
    "someone@example.org",
    "https://host/x?page=2&monkey=3&tokens=4",
    "hf_safefilter 0.1.0, hf_safefilter/publish/provenance.py",
    "basic questions and bearer bonds",
    "control_tokens=[<|end|>], max_tokens=512, token_budget=4096",
    "task-oriented-dialogue-with-many-words",
    "sha256:" + "ab" * 32,
    "a: b@c; C:/data/x@1.jsonl",
    "s3://bucket/a@b/c",
    "line\n\ttabbed, ümläut, 漢字, 👩‍👩‍👧, العربية",
]

CLEANED = [
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[2J\x1b[H\x1b]0;title\x07text", "text"),
    ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x9b31mred", "red"),
    ("\x1bPq#0\x1b\\sixel", "sixel"),
    ("a\x1bcb", "ab"),
    ("\x1b", ""),
    ("\x1b]0;never closed\nnext line", "0;never closed\nnext line"),
    ("a\x00b\x08c\x7fd", "abcd"),
    ("safe\u202egpj.exe", "safegpj.exe"),
    ("\u2066a\u2069\u200b\ufeffb\U000e0041", "ab"),
    ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
    ("\udcff", "\ufffd"),
    ("https://me:p\x00w@host", "https://***@host"),
]


@pytest.mark.parametrize(("text", "expected"), HIDDEN)
def test_secrets_are_hidden(text, expected):
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_is_kept(text):
    assert shown(text) == text


@pytest.mark.parametrize(("text", "expected"), CLEANED)
def test_what_steers_a_terminal_is_taken_out(text, expected):
    assert shown(text) == expected


def test_texts_and_keys_inside_values_are_cleaned():
    value = {TOKEN: [TOKEN, (TOKEN, 1, None, 2.5)], "a": {"b": "\x1b[1mx"}}
    assert everywhere(value, shown) == {"hf_***": ["hf_***", ["hf_***", 1, None, 2.5]], "a": {"b": "x"}}


def test_an_error_shows_none_of_it():
    error = DataError(f"no {TOKEN}", found="https://me:pw@host", fix="\x1b[31mnothing")
    assert str(error) == "no hf_***\nfound: https://***@host\nfix: nothing"
    assert (error.fact, error.found, error.fix) == ("no hf_***", "https://***@host", "nothing")


@pytest.mark.parametrize("form", list(Format))
def test_no_form_of_output_shows_it(form, capsys):
    secret = f"https://me:pw@host {TOKEN} "
    printer = Printer(form)
    printer.message(secret + "\x1b[2J")
    printer.note(secret + "\x1b[2J", warning=True)
    printer.table(secret, [{secret: secret + "\x1b[2J\u202e"}])
    printer.report({secret: secret, "list": [secret]}, ids=[secret], hint=secret)
    printer.error(ValueError(secret + "\x1b[2J"))
    printer.error(DataError(secret))
    out, err = capsys.readouterr()
    assert not [bad for bad in ("pw@", TOKEN, "\x1b[2J", "\u202e") if bad in out + err]
    assert "hf_***" in out + err
    if form is Format.JSON:
        assert json.loads(out)["list"] == ["https://***@host hf_*** "]
