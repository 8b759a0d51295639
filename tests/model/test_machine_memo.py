"""A choice that was measured once holds, whatever becomes of the file."""

import pytest

from hf_safefilter.model.machine_memo import FILE, remembered


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    return tmp_path / "store" / FILE


def test_what_was_measured_first_holds(file):
    answers = iter([4, 1, 2])
    assert remembered("threads", lambda: next(answers)) == 4
    assert remembered("threads", lambda: next(answers)) == 4
    assert remembered("other threads", lambda: next(answers)) == 1
    file.unlink()
    assert remembered("threads", lambda: next(answers)) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"threads": "many"}'])
def test_a_damaged_file_is_written_anew(file, content):
    file.parent.mkdir()
    file.write_text(content)
    assert remembered("threads", lambda: 3) == 3
    assert remembered("threads", lambda: 5) == 3


def test_where_nothing_can_be_kept_it_is_measured_each_time(file):
    file.parent.write_text("a file in the way of the folder")
    assert remembered("threads", lambda: 3) == 3
    assert remembered("threads", lambda: 5) == 5
