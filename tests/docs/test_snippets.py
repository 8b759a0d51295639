"""Every block of shell and Python on the pages of the guide is run, page after page, on toy rows in one folder."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

from doc_pages import DOCS, GUIDE, blocks_of, commands_of

from hf_safefilter.demo import mixed_rows
from hf_safefilter.toy.corpus import heldout_rows, reference_rows


def test_the_guide_runs_as_it_is_written(tmp_path, monkeypatch, call, hub):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "on")
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me"))
    write_rows()
    ran = 0
    for name in GUIDE:
        seen: dict = {}
        for block in blocks_of((DOCS / "guide" / f"{name}.md").read_text(encoding="utf-8")):
            where = f"docs/guide/{name}.md, line {block.line}"
            if block.title:
                Path(block.title).write_text(block.code, encoding="utf-8")
            elif block.run and block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile("\n" * block.line + block.code, where, "exec"), seen)  # noqa: S102  (our own words)
                ran += 1
            elif block.run and block.language == "sh":
                for line in commands_of(block):
                    run_command(call, line, where)
                    ran += 1
    assert ran > 40


def run_command(call, line, where):
    """A line of a shell, of which > and the expected exit code are understood."""
    expected = re.search(r"# exit code (\d)", line)
    command, _, target = line.partition(" > ")
    words = shlex.split(command, comments=True)
    assert words[0] == "hf-safefilter", f"{where}: only our own command is run: {line}"
    code, out, err = call(*words[1:])
    assert code == (int(expected[1]) if expected else 0), f"{where}: {line}\n{err[-2000:]}"
    if target:
        Path(shlex.split(target, comments=True)[0]).write_text(out, encoding="utf-8")


def write_rows():
    """What the pages call your rows, your references and rows that you know to be good."""
    unsafe, safe = reference_rows(100, 7)
    files = {
        "rows.jsonl": mixed_rows()[:120],
        "unsafe.jsonl": unsafe,
        "safe.jsonl": safe,
        "good.jsonl": heldout_rows("benign", 100),
    }
    for name, rows in files.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
