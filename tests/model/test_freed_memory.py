"""Freed memory is kept once a model is loaded: wide states come from the heap, not from pages fresh each time."""

import platform
import subprocess
import sys

import pytest
from small_models import save_small_model

PROGRAM = """
import sys
import torch
from hf_safefilter.model.load import ModelKey, resolve_revision, trunk

def from_heap():  # else it is a mapping of its own, which glibc gives back when it is freed
    states = torch.empty(30_000_000, dtype=torch.uint8)
    with open("/proc/self/maps") as maps:
        first, last = next(line.split()[0].split("-") for line in maps if "[heap]" in line)
    return int(first, 16) <= states.data_ptr() < int(last, 16)

before = from_heap()
trunk(ModelKey(sys.argv[1], resolve_revision(sys.argv[1], None), "float32"), 1, torch.device("cpu"))
print(before, from_heap())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is how glibc gives memory back")
def test_wide_states_come_from_the_heap_once_a_model_is_loaded(tmp_path):
    program = [sys.executable, "-c", PROGRAM, str(save_small_model(tmp_path / "model"))]
    process = subprocess.run(program, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "True"]
