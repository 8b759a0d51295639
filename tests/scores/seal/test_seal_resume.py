"""A run that was killed with SIGKILL goes on to the very same logits; nothing damaged or foreign is gone on with."""

import json
import os
import signal
from dataclasses import replace

import pytest
from fit_in_a_process import start
from processes import HANG
from rows_and_models import QUICK, fox_rows, safe_rows, small_llama

from hf_safefilter.errors import OptionError, SafefilterError
from hf_safefilter.scores.seal import Lora, fit_seal
from hf_safefilter.scores.seal.bilevel import Bilevel
from hf_safefilter.scores.seal.checkpoint import Checkpoints
from hf_safefilter.storage import artifacts

CASES = {
    "after a step": (["after", 2], {}, None),
    "after an epoch": (["after", 3], {"activation": "sigmoid"}, None),
    "half way through a checkpoint": (["while writing", 4], {}, None),
    "with adapters, their dropout and an auxiliary model": (
        ["after", 4], {"auxiliary": True}, {"rank": 2, "dropout": 0.2},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(small_llama(tmp_path_factory.mktemp("models") / "llama"))


def fit(model, change, lora, folder=None, **more):
    return fit_seal(
        model, fox_rows(), safe_rows(), options=replace(QUICK, **change), lora=Lora(**lora) if lora else None,
        device="cpu", checkpoints=folder, **more,
    )  # fmt: skip


def killed_runs(model, folder):
    """Start all cases side by side, kill each at its moment; name -> its checkpoint folder."""
    running = {}
    for name, (stop, change, lora) in CASES.items():
        place = folder / name.replace(" ", "-")
        job = {"model": model, "checkpoints": str(place), "stop": stop, "change": change, "lora": lora}
        running[name] = place, start(job)
    for _, process in running.values():
        assert process.stdout.readline().strip() in ("saved", "half written")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=HANG)
        assert process.returncode == -signal.SIGKILL
    return {name: place for name, (place, _) in running.items()}


def test_a_killed_run_learns_what_an_uninterrupted_one_does(model, tmp_path, monkeypatch):
    steps, real = [], Bilevel.step
    monkeypatch.setattr(Bilevel, "step", lambda self, *args: steps.append(1) or real(self, *args))
    for case, place in killed_runs(model, tmp_path).items():
        (how, step), change, lora = CASES[case]
        there = {path.name for path in place.iterdir()}
        assert any(name.startswith(".step-") for name in there) == (how == "while writing"), case
        steps.clear()
        resumed = fit(model, change, lora, place)
        assert len(steps) == 6 - (step - 1 if how == "while writing" else step), case
        assert resumed.digest == fit(model, change, lora).digest, case  # logits, curves, counts: to the last bit
        assert [path.name for path in place.iterdir()] == ["done.json"], case


def test_a_run_that_was_done_is_not_run_again(model, tmp_path, monkeypatch):
    first = fit(model, {"epochs": 1}, None, tmp_path)
    (tmp_path / "step-00000003").mkdir()  # of a run that was killed while it cleaned up
    monkeypatch.setattr("hf_safefilter.scores.seal.loop.learn", None)
    assert fit(model, {"epochs": 1}, None, tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["done.json"]


def test_a_note_that_is_damaged_or_leads_nowhere_is_not_trusted(model, tmp_path):
    first = fit(model, {"epochs": 1}, None, tmp_path)
    note = tmp_path / "done.json"
    said = json.loads(note.read_text())
    for text in ("{", json.dumps(said | {"result": "sha256:" + "0" * 64}), json.dumps(said | {"result": "../.."})):
        note.write_text(text)
        assert fit(model, {"epochs": 1}, None, tmp_path) == first


class Stop(Exception):
    pass


@pytest.fixture
def halted(model, tmp_path, monkeypatch):
    """Checkpoints of a run that stopped after its fourth step."""
    real = Checkpoints.save

    def save(self, step, *rest):
        real(self, step, *rest)
        if step == 4:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Checkpoints, "save", save)
        fit(model, {}, None, tmp_path, checkpoint_seconds=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    return tmp_path


@pytest.mark.parametrize("damage", ["cut", "flipped", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(model, halted, damage, caplog):
    state = halted / "step-00000004" / "state.safetensors"
    content = bytearray(state.read_bytes())
    if damage == "no manifest":
        (halted / "step-00000004" / artifacts.MANIFEST).unlink()
    elif damage == "cut":
        state.write_bytes(content[:-9])
    else:
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    resumed = fit(model, {}, None, halted)
    assert "step-00000004 is skipped" in caplog.text
    assert resumed.digest == fit(model, {}, None).digest


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"seed": 1}, {"auxiliary": True}])
def test_another_run_does_not_go_on_from_these(model, halted, change):
    with pytest.raises(OptionError, match="another run"):
        fit(model, change, None, halted)
    assert sorted(path.name for path in halted.iterdir()) == ["step-00000003", "step-00000004"]


def test_checkpoints_hold_tensors_and_json_alone(halted):
    names = {path.name for path in halted.rglob("*") if path.is_file()}
    assert names == {"manifest.json", "state.safetensors"}


def test_a_full_disk_keeps_the_checkpoints_before(model, tmp_path, monkeypatch):
    import safetensors.torch

    real, calls = safetensors.torch.save_file, []

    def save_file(tensors, path):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(SafefilterError, match="step 3 could not be written"):
        patch.setattr(safetensors.torch, "save_file", save_file)
        fit(model, {}, None, tmp_path, checkpoint_seconds=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert fit(model, {}, None, tmp_path).digest == fit(model, {}, None).digest
