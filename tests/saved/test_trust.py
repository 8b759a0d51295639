"""Vectors, scores and decisions in a folder are believed if this machine wrote them, or the user says so."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_from_disk

from hf_safefilter.decide.select import IsSafe
from hf_safefilter.decide.thresholds import threshold_for
from hf_safefilter.errors import IntegrityError, SafefilterError
from hf_safefilter.saved.decision import DECISION, SCORED, read_decision, write_decision
from hf_safefilter.saved.saved_rows import TRAIL, Trail, load_rows_with_steps, save_rows
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.storage.recorded_files import RECORD, record_files
from hf_safefilter.storage.signature import KEY

TENTH = {"drop_fraction": 0.1}


@pytest.fixture(scope="module")
def scored_rows():
    rows = Dataset.from_list([{"prompt": f"{n}?", "response": "a" * n} for n in range(1, 41)])
    return rows.map(LengthScore(), batched=True)


@pytest.fixture
def scored(scored_rows, tmp_path):
    save_rows(scored_rows, tmp_path / "scored", [LengthScore()], name="rows", revision="none")
    return tmp_path / "scored"


@pytest.fixture
def decided(scored, tmp_path):
    saved = load_rows_with_steps(scored)
    decision = IsSafe("length_score", threshold_for(saved.rows, "length_score", **TENTH))
    write_decision(tmp_path / "decided", saved, decision, selection=TENTH)
    return tmp_path / "decided"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A function that does something on another machine: in its own store, with its own key."""

    def do(work):
        with monkeypatch.context() as other:
            other.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
            return work()

    return do


def upside_down(folder):
    """Exchange the scores of saved rows; the trail stays."""
    rows = load_from_disk(folder)
    scores = np.array(rows["length_score"][:], np.float32)[::-1]
    changed = rows.remove_columns("length_score").add_column("length_score", scores)
    changed.save_to_disk(folder.with_name("changed"))
    for file in folder.glob("*.arrow"):
        file.unlink()
    for file in folder.with_name("changed").iterdir():
        shutil.copy(file, folder)
    assert load_from_disk(folder)["length_score"][0] == 40


def rewritten(folder, **changes):
    """Change the decision of a folder."""
    path = folder / DECISION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_here_is_believed(scored, decided):
    assert not load_rows_with_steps(scored).trusted
    assert not read_decision(decided).saved.trusted


def test_changed_scores_beside_an_honest_trail_are_refused_whoever_is_trusted(scored):
    upside_down(scored)
    for trust in (False, True):
        with pytest.raises(IntegrityError, match="data-00000-of-00001.arrow was altered"):
            load_rows_with_steps(scored, trust_vectors=trust)


@pytest.mark.parametrize("record", ["theirs", "none", "no json", "[]", "ours, of something else"])
def test_a_folder_of_another_machine_is_refused_unless_trusted(scored, elsewhere, record):
    upside_down(scored)
    if record == "ours, of something else":
        record_files(scored, DECISION)
    elif record == "theirs":
        elsewhere(lambda: record_files(scored, TRAIL))
    elif record == "none":
        (scored / RECORD).unlink()
    else:
        (scored / RECORD).write_text(record)
    with pytest.raises(IntegrityError, match="not written by this user on this machine") as error:
        load_rows_with_steps(scored)
    assert "`trust_vectors=True`" in error.value.fix
    assert load_rows_with_steps(scored, trust_vectors=True).trusted


def test_a_record_with_one_digest_changed_is_nobodys(scored):
    upside_down(scored)
    record = json.loads((scored / RECORD).read_text())
    honest = record["signature"]
    record_files(scored, TRAIL)
    changed = json.loads((scored / RECORD).read_text())
    (scored / RECORD).write_text(json.dumps(changed | {"signature": honest}))
    with pytest.raises(IntegrityError, match="not written by this user"):
        load_rows_with_steps(scored)


@pytest.mark.parametrize("change", ["another file", "no steps", "a link"])
def test_nothing_is_added_or_exchanged(scored, change):
    if change == "another file":
        (scored / "data-00001-of-00002.arrow").write_bytes(b"")
    elif change == "no steps":
        trail = json.loads((scored / TRAIL).read_text())
        (scored / TRAIL).write_text(json.dumps(trail | {"steps": []}))
    else:
        (scored / "more").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="is damaged"):
        load_rows_with_steps(scored)


def test_machines_that_share_a_key_believe_each_other(scored_rows, tmp_path, monkeypatch, elsewhere):
    (tmp_path / "key").write_bytes(bytes(range(32)))
    monkeypatch.setenv(KEY, str(tmp_path / "key"))
    steps = [LengthScore()]
    elsewhere(lambda: save_rows(scored_rows, tmp_path / "theirs", steps, name="rows", revision="none"))
    assert not load_rows_with_steps(tmp_path / "theirs").trusted


def test_trust_is_never_forgotten(scored, tmp_path, elsewhere):
    elsewhere(lambda: record_files(scored, TRAIL))
    saved = load_rows_with_steps(scored, trust_vectors=True)
    decision = IsSafe("length_score", threshold_for(saved.rows, "length_score", **TENTH))
    write_decision(tmp_path / "decided", saved, decision, selection=TENTH)
    assert Trail.verified(tmp_path / "decided" / SCORED).trusted
    assert read_decision(tmp_path / "decided").saved.trusted


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": (1e9).hex()},
        {"threshold": (1e9).hex(), "selection": None},
        {"threshold": (1e9).hex(), "selection": {"threshold": 1e9}},
        {"rule": "the highest 50 % of 40 scored rows dropped"},
        {"threshold": (1e9).hex(), "selection": {"known_good": "rows", "max_loss": 0.1, "confidence": 0.9}},
        {"selection": {"surprise": 1}},
        {"column": "no_score"},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_a_threshold_that_does_not_follow_from_its_rule_is_refused(decided, changes, trust, elsewhere):
    rewritten(decided, **changes)
    with pytest.raises(IntegrityError, match=f"{DECISION} was altered"):
        read_decision(decided, trust_vectors=trust)
    elsewhere(lambda: record_files(decided, DECISION, [DECISION, f"{SCORED}/{RECORD}"]))
    says = "does not follow|cannot be found again|is damaged" if trust else "not written by this user"
    with pytest.raises(IntegrityError, match=says):
        read_decision(decided, trust_vectors=trust)


def test_the_verdict_of_another_machine_is_not_taken_over(decided, elsewhere):
    rewritten(decided, anyway=True, verdict={"column": "length_score", "finding": "above chance"})
    elsewhere(lambda: record_files(decided, DECISION, [DECISION, f"{SCORED}/{RECORD}"]))
    read = read_decision(decided, trust_vectors=True)
    assert (read.verdict, read.anyway, read.saved.trusted) == (None, False, True)


def test_a_decision_beside_other_rows_is_refused(decided, scored_rows):
    shutil.rmtree(decided / SCORED)
    fewer = scored_rows.select(range(30))
    save_rows(fewer, decided / SCORED, [LengthScore()], name="rows", revision="none")
    with pytest.raises(IntegrityError, match=r"scored/\S+ was altered"):
        read_decision(decided)


@pytest.mark.parametrize("part", ["kept", "dropped"])
def test_rows_to_tune_on_that_are_others_are_noticed(decided, scored_rows, part):
    shutil.rmtree(decided / part)
    scored_rows.select([0]).save_to_disk(decided / part)
    with pytest.raises(IntegrityError, match=f"{part}/.* was (altered|added|removed)"):
        read_decision(decided)


def test_a_score_that_came_with_the_rows_decides_nothing(call, scored_rows, tmp_path):
    theirs = scored_rows.add_column("larf_score", np.zeros(len(scored_rows), np.float32))
    save_rows(theirs, tmp_path / "scored", [LengthScore()], name="rows", revision="none")
    for command in (("select", "-o", tmp_path / "decided"), ("inspect",)):
        code, _, err = call(command[0], tmp_path / "scored", "--by", "larf_score", "--drop-count", 3, *command[1:])
        assert code == 1 and "no step of this program has filled" in err and "length_score" in err
    assert not (tmp_path / "decided").exists()


@pytest.mark.parametrize("signature", ["\ud800", "\udcff" * 64, 3, None, ["a"]])
def test_a_signature_that_is_no_text_is_nobodys(scored, signature):
    record = json.loads((scored / RECORD).read_text())
    (scored / RECORD).write_text(json.dumps(record | {"signature": signature}))
    with pytest.raises(IntegrityError, match="not written by this user"):
        load_rows_with_steps(scored)


@pytest.mark.parametrize("step", [{"step": []}, {"step": "LarfScore"}, {"step": "EmbedLayers", "layers": "x"}])
def test_a_damaged_step_of_a_trusted_folder_is_said(scored, step, elsewhere):
    trail = json.loads((scored / TRAIL).read_text())
    (scored / TRAIL).write_text(json.dumps(trail | {"steps": [step]}))
    elsewhere(lambda: record_files(scored, TRAIL))
    with pytest.raises(SafefilterError):
        load_rows_with_steps(scored, trust_vectors=True)


def test_in_the_shell_and_on_the_card(call, scored, tmp_path, elsewhere):
    elsewhere(lambda: record_files(scored, TRAIL))
    select = ("select", scored, "--by", "length_score", "--drop-fraction", "0.1", "-o", tmp_path / "decided")
    code, _, err = call(*select)
    assert code == 1 and "not written by this user on this machine" in err and "--trust-vectors" in err
    assert call(*select, "--trust-vectors", "--anyway")[0] == 0
    facts = ("--license", "mit", "--source", "a barn", "-o", tmp_path / "out", "--anyway")
    assert call("card", tmp_path / "decided", *facts)[0] == 0
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["trusted_vectors"] is True
    assert "**Not made here:**" in (tmp_path / "out" / "README.md").read_text()


def test_false_scores_of_a_trusted_folder_are_still_scored_again(call, scored, tmp_path, elsewhere):
    upside_down(scored)
    elsewhere(lambda: record_files(scored, TRAIL))
    select = ("select", scored, "--by", "length_score", "--drop-fraction", "0.1", "-o", tmp_path / "decided")
    assert call(*select, "--trust-vectors", "--anyway")[0] == 0
    code, _, err = call("card", tmp_path / "decided", "--license", "mit", "--source", "a", "-o", tmp_path / "out")
    assert code == 1 and "do not give the scores" in err


def test_a_key_is_made_once_and_for_this_user_alone(tmp_path, monkeypatch):
    from hf_safefilter.storage import signature

    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    first = signature.signed({"a": 1}, "x")
    assert signature.is_signed(first, "x") and not signature.is_signed(first, "y")
    assert not signature.is_signed(first | {"a": 2}, "x") and not signature.is_signed({"a": 1}, "x")
    assert not signature.is_signed(first | {"signature": 7}, "x")
    (key,) = (tmp_path / "store").iterdir()
    assert key.stat().st_mode & 0o077 == 0 and len(key.read_bytes()) == 32
    signature._key.cache_clear()  # as another process
    assert signature.signed({"a": 1}, "x") == first
    content = pa.py_buffer(b"rows")
    assert signature.code_of(memoryview(content)) == signature.code_of(b"rows") != signature.code_of(b"row")


def test_what_datasets_lays_beside_rows_is_no_damage_and_is_not_read(scored):
    """A user who filters saved rows leaves `cache-*.arrow` there; any other file that was added speaks of a change."""
    rows = load_from_disk(str(scored))
    rows.filter(lambda row: False)
    assert list(scored.glob("cache-*.arrow"))
    assert len(load_rows_with_steps(scored).rows) == len(rows)
    (scored / "more.arrow").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"more\.arrow was added"):
        load_rows_with_steps(scored)
