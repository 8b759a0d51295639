"""Any record that lies beside rows, scores or a card is believed, or refused in a sentence, by all that read it."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from fuzz.conftest import MANY
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_safefilter.cli.label import _pairs_of_file
from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.decide.thresholds import threshold_for
from hf_safefilter.effect import read_card_part
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.engine.local import score_rows
from hf_safefilter.errors import SafefilterError
from hf_safefilter.labeling.label_log import LabelLog
from hf_safefilter.locate.safety_layers import SafetyLayers
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish.card import render, splits_in
from hf_safefilter.publish.data_files import read_published
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.push import push_folder
from hf_safefilter.recipe import Recipe
from hf_safefilter.review.imports import read_decisions
from hf_safefilter.review.review import Review
from hf_safefilter.saved.decision import read_decision, write_decision
from hf_safefilter.saved.saved_rows import load_rows_with_steps, save_rows
from hf_safefilter.saved.shards import Shard, embed_shard, merge
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.storage.recorded_files import RECORD, record_files

WORDS = [
    "", "x", "toy", "length_score", "row_id", "sha256:0", "../..", "/dev/zero", "a/b", "train", "\ud800", "\x1b[2J",
    "nan", "9" * 400, "LengthScore", "mit", "unsafe", "2020-01-01", "{{ 7 * 7 }}",
]  # fmt: skip
scalars = st.one_of(
    st.sampled_from(WORDS), st.none(), st.booleans(), st.floats(), st.text(max_size=6),
    st.integers(-3, 3), st.sampled_from([10**30, -1, 2**31, 1e308, float("inf")]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
changes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), min_size=1, max_size=6), st.sampled_from(["set", "set", "drop", "add"]), values
    ),
    min_size=1, max_size=3,
)  # fmt: skip
noise = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"[" * 100_000, b"\xff\xfe{", b"null", b"[]", b"{}", b'"x"', b"1e999", b"{" * 9]),
)


def changed(body, places):
    """A copy of a JSON value in which what stands at some places is exchanged, dropped, or joined by another."""
    root = {"": copy.deepcopy(body)}
    for path, how, value in places:
        holder, key = root, ""
        for step in path:
            inner = holder[key]
            if isinstance(inner, dict) and inner:
                holder, key = inner, list(inner)[step % len(inner)]
            elif isinstance(inner, list) and inner:
                holder, key = inner, step % len(inner)
        if how == "drop" and holder is not root:
            del holder[key]
        elif how == "add" and isinstance(holder[key], dict):
            holder[key][str(value)[:9]] = value
        else:
            holder[key] = value
    return root[""]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folders as this package writes them, of rows that are scored by their length."""
    root = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_SAFEFILTER_CACHE", str(root / "store"))
        rows = Dataset.from_list(
            [
                {"prompt": f"What is {n}?", "response": "It is so. " * (n % 7 + 1), "label": "ab"[n % 2]}
                for n in range(40)
            ]
        )
        steps = [EmbedLayers("toy", [1]), LengthScore()]
        scored = rows
        for step in steps:
            scored = scored.map(step, batched=True)
        save_rows(scored, root / "scored", steps, name="rows", revision="none")
        saved = load_rows_with_steps(root / "scored")
        is_safe = IsSafe("length_score", threshold_for(saved.rows, "length_score", threshold=60.0))
        write_decision(root / "decided", saved, is_safe, selection={"threshold": 60.0})
        recipe = Recipe.read({"data": {"license": "mit", "source": "me"}, "model": {"name": "toy"},
                              "select": {"threshold": 60.0}}).to_dict()  # fmt: skip
        provenance = gather(saved.rows, is_safe, license="mit", source="me", source_revision="none", steps=steps,
                            recipe=recipe, anyway=True)  # fmt: skip
        write_folder(root / "published", saved.rows, is_safe, provenance)
        rows.save_to_disk(root / "rows")
        loaded = load_rows(root / "rows")
        for part in range(2):
            embed_shard(loaded, LengthScore(), root / "shards", Shard(part, 2), score_rows)
        lines = [{"row_id": "ab" * 16, "label": "unsafe", "who": "me", "when": "2020-01-01T00:00:00", "round": 1}] * 3
        (root / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        table = ({"block": 1, "score": 0.5},)
        SafetyLayers("scaling", 1, 2, "", table, {"model": "toy"}, {"seconds": 1.0}).save(root / "found")
        (root / "effect").mkdir()
        (root / "effect" / "effect.json").write_text('{"card": {"openings": {"a": 1}, "verdict": "x"}}')
        yield root


def pushed(folder):
    """Signed by this machine as it is, and sent to a repository that has another card."""
    record_files(folder, "provenance.json")
    push_folder(folder, "loopback/rows", sleep=no_wait)


def seen_by_a_later_push(folder):
    """The card is that of the repository to push to."""
    card = (folder / "README.md").read_bytes().decode(errors="replace")
    provenance = Provenance.from_json((folder / "provenance.json").read_bytes())
    render(provenance, read_published(folder), existing=card, text_included=False, repository="me/x")
    splits_in(card)


def verified(folder):
    for line in Verification(folder, None, sample=4, seed=0).lines():
        assert line.result in ("pass", "fail", "cannot say")


READERS = {
    ("scored", "safefilter.json"): [
        lambda at: (record_files(at, "safefilter.json"), load_rows_with_steps(at)),
        lambda at: load_rows_with_steps(at, trust_vectors=True),
    ],
    ("scored", RECORD): [lambda at: load_rows_with_steps(at, trust_vectors=True), load_rows_with_steps],
    ("scored", "state.json"): [lambda at: load_rows(at).rows[0]],
    ("scored", "dataset_info.json"): [lambda at: load_rows(at).rows[0]],
    ("decided", "decision.json"): [
        lambda at: (record_files(at, "decision.json"), read_decision(at)),
        lambda at: ((at / RECORD).unlink(), read_decision(at, trust_vectors=True)),
    ],
    ("shards/shard-00000-of-00002", "safefilter.json"): [
        lambda at: (record_files(at, "safefilter.json"), merge([at.parent], at.parent.parent / "merged"))
    ],
    ("published", "provenance.json"): [verified, pushed],
    ("published", "croissant.json"): [verified, pushed],
    ("found", "locate.json"): [SafetyLayers.load],
    ("effect", "effect.json"): [read_card_part],
}
"""Folder and file -> what reads it."""


def no_wait(seconds):
    raise AssertionError("the Hub of the tests is there at once")


def try_all(good, tmp_path_factory, where, name, content):
    """Write `content` in place of a file, in a copy of its folder for each reader."""
    for read in READERS[where, name]:
        own = tmp_path_factory.mktemp("own")
        folder = own / where
        shutil.copytree(good / Path(where).parts[0], own / Path(where).parts[0])
        (folder / name).write_bytes(content)
        try:
            read(folder)
        except SafefilterError as error:
            assert str(error).strip()
        finally:
            shutil.rmtree(own)


@pytest.fixture
def at_home(good, monkeypatch, hub):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(good / "store"))


@pytest.mark.parametrize(("where", "name"), READERS)
@settings(max_examples=MANY // 10 or 15)
@given(places=changes)
def test_a_record_with_other_values(good, at_home, tmp_path_factory, where, name, places):
    body = changed(json.loads((good / where / name).read_text()), places)
    try_all(good, tmp_path_factory, where, name, json.dumps(body).encode())


@pytest.mark.parametrize(("where", "name"), READERS)
@settings(max_examples=MANY // 20 or 8)
@given(at=st.floats(0, 1), letters=noise, cut=st.booleans())
def test_a_record_with_other_bytes(good, at_home, tmp_path_factory, where, name, at, letters, cut):
    content = (good / where / name).read_bytes()
    place = int(at * len(content))
    content = letters if at in (0, 1) else content[:place] + letters + (b"" if cut else content[place:])
    try_all(good, tmp_path_factory, where, name, content)


@settings(max_examples=MANY // 10 or 25)
@given(places=changes, at=st.floats(0, 1), letters=noise, raw=st.booleans())
def test_the_metadata_of_a_card(good, at_home, tmp_path_factory, places, at, letters, raw):
    card = (good / "published" / "README.md").read_text()
    head, rest = card[4:].split("\n---", 1)
    if raw:
        place = int(at * len(head))
        content = f"---\n{head[:place]}".encode() + letters + f"{head[place:]}\n---{rest}".encode()
    else:
        try:
            text = yaml.safe_dump(changed(yaml.safe_load(head), places), allow_unicode=True)
            content = f"---\n{text}---{rest}".encode()
        except (yaml.YAMLError, UnicodeError):
            return
    own = Path(shutil.copytree(good / "published", tmp_path_factory.mktemp("own") / "published"))
    (own / "README.md").write_bytes(content)
    readers = [verified, pushed, seen_by_a_later_push, load_rows, lambda at: Recipe.from_card(str(at))]
    for read in readers:
        try:
            read(own)
        except SafefilterError as error:
            assert str(error).strip()
    shutil.rmtree(own.parent)


@settings(max_examples=MANY // 5 or 40)
@given(places=changes, at=st.floats(0, 1), letters=noise, raw=st.booleans())
def test_a_log_of_labels(good, tmp_path_factory, places, at, letters, raw):
    path = tmp_path_factory.mktemp("own") / "labels.jsonl"
    content = (good / "labels.jsonl").read_bytes()
    first, rest = content.split(b"\n", 1)
    if raw:
        place = int(at * len(content))
        path.write_bytes(content[:place] + letters + content[place:])
    else:
        path.write_bytes(json.dumps(changed(json.loads(first), places)).encode() + b"\n" + rest)
    for read in (lambda at: LabelLog(at).summary(), _pairs_of_file):
        try:
            read(path)
        except SafefilterError as error:
            assert str(error).strip()


@settings(max_examples=MANY // 5 or 40)
@given(places=changes, at=st.floats(0, 1), letters=noise, raw=st.booleans(), argilla=st.booleans())
def test_decisions_that_were_made_elsewhere(good, at_home, tmp_path_factory, places, at, letters, raw, argilla):
    own = tmp_path_factory.mktemp("own")
    path, row_id = own / "theirs.jsonl", load_rows_with_steps(good / "scored").rows[3]["row_id"]
    entry = {"row_id": row_id, "decision": "mask", "who": "me", "when": "2020-01-01T00:00:00+00:00", "turns": [1]}
    response = {"value": "drop", "user_id": "5b0e7c1e-3a0c-5d53-9a5e-2f6f0b6f6f10"}
    record = {"id": "0", "fields": {}, "metadata": {"row_id": row_id}, "responses": {"decision": [response]}}
    line = record if argilla else entry
    content = (json.dumps(line) + "\n").encode() * 2
    if raw:
        place = int(at * len(content))
        content = content[:place] + letters + content[place:]
    else:
        content = json.dumps(changed(line, places)).encode() + b"\n" + content
    path.write_bytes(content)
    review = Review.of(good / "scored", own / "decisions.jsonl", by="length_score", output=own / "labelled")
    try:
        taken = review.take(read_decisions(path, ["me"]).decisions)
    except SafefilterError as error:
        assert str(error).strip()
    else:
        assert taken["taken"] <= 3
    again = Review.of(good / "scored", own / "decisions.jsonl", by="length_score", output=own / "labelled")
    assert again.overview()["decisions"] == review.overview()["decisions"]  # what was taken can be read


def test_what_is_changed_is_read_where_nothing_is_changed(good, at_home, tmp_path_factory):
    """The readers take the folders as they are: what they refuse later is for what was changed."""
    refused = []
    for where, name in READERS:
        for number, read in enumerate(READERS[where, name]):
            own = tmp_path_factory.mktemp("own")
            shutil.copytree(good / Path(where).parts[0], own / Path(where).parts[0])
            try:
                read(own / where)
            except SafefilterError as error:
                refused.append((where, name, number, error.fact))
    assert [one[:3] for one in refused] == [], refused
