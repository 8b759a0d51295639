"""A file of lines that grows: whole lines stay, a torn one goes, and a file of somebody else is left as it is."""

import pytest

from hf_safefilter.errors import IntegrityError
from hf_safefilter.storage.append_log import AppendLog


def test_lines_are_there_for_the_next_who_reads(tmp_path):
    log = AppendLog(tmp_path / "new" / "log")
    for number in range(3):
        log.append({"n": number})
    assert AppendLog(log.path).read(lambda body: body["n"], "number") == [0, 1, 2]


def test_two_writers_lose_no_line(tmp_path):
    first, second = AppendLog(tmp_path / "log"), AppendLog(tmp_path / "log")
    for number in range(4):
        (first if number % 2 else second).append({"n": number})
    assert first.read(lambda body: body["n"], "number") == [0, 1, 2, 3]


def test_a_torn_line_is_left_out_and_cut_off(tmp_path):
    log = AppendLog(tmp_path / "log")
    log.append({"n": 0})
    digest = log.digest()
    with log.path.open("a") as stream:
        stream.write('{"n": 1')
    assert log.read(lambda body: body["n"], "number") == [0] and log.digest() == digest
    log.append({"n": 2})
    assert log.path.read_text() == '{"n": 0}\n{"n": 2}\n'


@pytest.mark.parametrize("content", ["my notes", '{"n": 0}\nmy notes', "[1]\n", '{"m": 0}\n', "\udcff\n"])
def test_what_is_no_such_file_is_refused_and_not_cut(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match=r"line \d of .*notes is no number"):
        AppendLog(path).read(lambda body: body["n"], "number")
    assert path.read_bytes() == before
