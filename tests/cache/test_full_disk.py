"""No room: a clear error, what was there stays whole, and the same command goes on once there is room."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import answer, start
from test_recall import another_process, recall, same_as_the_model

from hf_safefilter.cache import store as stores
from hf_safefilter.errors import SafefilterError
from hf_safefilter.storage import atomic, scratch

ROWS = list(range(300))

LIMITED = f"""
import json, resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_recall import recall
from hf_safefilter import cache
from hf_safefilter.errors import SafefilterError

recall(list(range(100)))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
said = None
try:
    recall(list(range(300)))
except SafefilterError as error:
    said = str(error)
print(json.dumps(said))
"""


def test_a_file_that_may_not_grow_stops_a_real_process(store):
    said = answer(start(LIMITED))
    assert "the row cache" in said and "File too large" in said
    assert "200 rows of the last seconds are not cached; all rows before them are" in said
    assert "prune --max-size" in said and "HF_SAFEFILTER_CACHE" in said and "run the same command again" in said
    assert not list(store.rglob("*.tmp"))
    reading, asked = recall(ROWS)
    same_as_the_model(reading, ROWS)
    assert len(asked) == 200


@pytest.mark.parametrize("when", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_every_step_of_a_write_may_fail(store, monkeypatch, when, code):
    recall(ROWS[:100])

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    places = {
        "open": (scratch.tempfile, "mkstemp"),
        "write": (Path, "write_bytes"),
        "fsync": (atomic.os, "fsync"),
        "rename": (atomic.os, "replace"),
    }
    with monkeypatch.context() as broken:
        broken.setattr(*places[when], fail)
        with pytest.raises(SafefilterError, match=os.strerror(code)) as error:
            recall(ROWS)
    assert "200 rows of the last seconds" in error.value.found
    assert not list(store.rglob("*.tmp")) and len(list(store.rglob("*.arrow"))) == 1
    another_process()
    reading, asked = recall(ROWS)
    same_as_the_model(reading, ROWS)
    assert not asked, "what waited in memory was written once there was room"


def test_a_store_that_is_no_folder(tmp_path, store, monkeypatch):
    (tmp_path / "file").write_text("I am a file.")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "file"))
    with pytest.raises(SafefilterError, match="Not a directory|File exists"):
        recall(ROWS)
    stores._open.clear()


@pytest.fixture
def small_disk(tmp_path, monkeypatch, store):
    """A file system of 64 KB under the store."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system could be mounted: {done.stderr.strip()}")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(place))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up(small_disk):
    kept = 0
    with pytest.raises(SafefilterError, match="No space left on device"):
        for kept in range(0, 100_000, 200):
            recall(list(range(kept, kept + 200)))
    assert kept > 0 and not list(small_disk.rglob("*.tmp"))
    stores._open.clear()
    reading, asked = recall(list(range(kept)))
    same_as_the_model(reading, list(range(kept)))
    assert not asked, "all that was written before is there"
    stores._open.clear()
