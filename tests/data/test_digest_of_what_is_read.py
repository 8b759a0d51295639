"""Rows under a digest are those of the bytes that were hashed, whenever the source is changed."""

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, config

from hf_safefilter.data import load_rows as loading
from hf_safefilter.data import local_files, plain_copies
from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.errors import IntegrityError


def written(path: Path, word: str) -> str:
    """Write ten rows with this word (words of one length give files of one size); returns the digest of the file."""
    text = "".join(json.dumps({"prompt": f"{number}?", "response": word}) + "\n" for number in range(10))
    content = gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
    path.write_bytes(content)
    return "sha256:" + hashlib.sha256(content).hexdigest()


def swapped_at(monkeypatch, module, name: str, swap, *, before: bool):
    """Have `swap` called once, before or after the first call of a function."""
    real, done = getattr(module, name), []

    def call(*args, **options):
        if before and not done:
            done.append(swap())
        result = real(*args, **options)
        if not done:
            done.append(swap())
        return result

    monkeypatch.setattr(module, name, call)


def test_a_file_of_the_same_size_and_time_is_another_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    written(path, "sheep")
    times = path.stat()
    load_rows(path)
    digest = written(path, "goats")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    loaded = load_rows(path)
    assert (loaded.rows["response"][0], loaded.revision) == ("goats", digest)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_file_changed_about_the_reading_is_refused_and_leaves_nothing(tmp_path, monkeypatch, ending, before):
    path, word = tmp_path / f"rows{ending}", f"sheep{ending}{before}"
    digest = written(path, word)
    with monkeypatch.context() as attack:
        swapped_at(attack, local_files, "_prepare", lambda: written(path, word[::-1]), before=before)
        with pytest.raises(IntegrityError, match="was changed while it was read"):
            load_rows(path)
    assert written(path, word) == digest
    loaded = load_rows(path)  # what was read of the other file is not served under this digest
    assert (loaded.rows["response"][0], loaded.revision) == (word, digest)


def test_a_compressed_file_changed_while_it_is_unpacked_leaves_no_copy(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl.gz"
    written(path, "sheep shorn")
    with monkeypatch.context() as attack:
        swapped_at(attack, plain_copies, "_copy_within", lambda: written(path, "goats shorn"), before=False)
        with pytest.raises(IntegrityError, match="was changed while it was read"):
            load_rows(path)
    copies = Path(config.HF_DATASETS_CACHE, "safefilter-plain")
    assert not any(b"shorn" in copy.read_bytes() for copy in copies.iterdir())


def test_a_reading_that_was_killed_before_the_second_look_is_not_believed(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    digest = written(path, "sheep dipped")

    hashed = []

    def killed_at_the_second(file):
        hashed.append(file)
        if len(hashed) == 2:
            raise KeyboardInterrupt
        return hashlib.sha256(file.read_bytes()).hexdigest()

    with monkeypatch.context() as attack:
        attack.setattr(local_files, "file_sha256", killed_at_the_second)
        swapped_at(attack, local_files, "_reader", lambda: written(path, "goats dipped"), before=True)
        with pytest.raises(KeyboardInterrupt):
            load_rows(path)
    assert written(path, "sheep dipped") == digest
    assert load_rows(path).rows["response"][0] == "sheep dipped"


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_stay_in_their_files_are_held_to_the_digest_at_the_end(tmp_path, streaming):
    folder = tmp_path / "rows"
    Dataset.from_dict({"prompt": ["1?"], "response": ["sheep"]}).save_to_disk(folder)
    Dataset.from_dict({"prompt": ["1?"], "response": ["goats"]}).save_to_disk(tmp_path / "others")
    loaded = load_rows(folder, streaming=streaming)
    loaded.require_unchanged()
    shutil.copyfile(next((tmp_path / "others").glob("*.arrow")), next(folder.glob("*.arrow")))
    with pytest.raises(IntegrityError, match="rows was changed while it was read"):
        loaded.require_unchanged()


def test_a_folder_changed_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    Dataset.from_dict({"prompt": ["1?"], "response": ["sheep"]}).save_to_disk(tmp_path / "rows")
    swapped_at(monkeypatch, loading, "_local", lambda: (tmp_path / "rows" / "more").touch(), before=False)
    with pytest.raises(IntegrityError, match="was changed"):
        load_rows(tmp_path / "rows")
