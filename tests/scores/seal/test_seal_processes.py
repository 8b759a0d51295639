"""Two processes with gloo learn what one process learns from the combined batch."""

import json
import socket
from dataclasses import replace

import numpy as np
import pytest
from fit_in_a_process import start
from processes import HANG
from rows_and_models import QUICK, fox_rows, safe_rows, small_llama

from hf_safefilter.scores.seal import fit_seal

CHANGES = {
    "shares of unequal size": {"batch_size": 5, "auxiliary": True},
    "a process without a share": {"batch_size": 1, "selector_optimiser": "sgd"},
}


def two_processes(model, checkpoints, change):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"model": model, "checkpoints": checkpoints, "stop": None, "change": change, "lora": None}
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [start(job, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    said = [process.communicate(timeout=HANG) for process in running]
    assert [process.returncode for process in running] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(small_llama(tmp_path_factory.mktemp("models") / "llama"))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_two_processes_learn_what_one_does(model, tmp_path, change):
    first, second = two_processes(model, str(tmp_path), change)
    assert first == second  # both hold the same selector, whose digest covers the curves too
    alone = fit_seal(model, fox_rows(), safe_rows(), options=replace(QUICK, **change), device="cpu")
    assert list(first["logits"]) == [str(one, "ascii") for one in alone.row_ids]
    together = np.array([float.fromhex(one) for one in first["logits"].values()])
    np.testing.assert_allclose(together, alone.logits, rtol=0, atol=2e-5)
    assert np.ptp(alone.logits) > 1e-2
    for line, other in zip(first["facts"]["epochs"], alone.epochs(), strict=True):
        assert line["safe_loss"] == pytest.approx(other["safe_loss"], abs=1e-5)
        assert line["row_loss"] == pytest.approx(other["row_loss"], abs=1e-5)
    assert first["facts"]["run"] == alone.facts["run"]
    assert [path.name for path in tmp_path.iterdir()] == ["done.json"]
