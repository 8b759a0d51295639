"""Every test runs against a Hub of its own on the loopback interface; nothing reaches further."""

import logging
import os
import sys

import pytest

# Test models are tiny and the workers many: threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test must see what it reads, not what another test has read; those of the row cache turn it on.
os.environ.setdefault("HF_SAFEFILTER_ROW_CACHE", "off")

from hub import early  # noqa: E402  (the variables above and below are read when torch and the clients are imported)

early.start()
pytest_plugins = ["hub.fixtures"]


@pytest.fixture(autouse=True)
def heard():
    """What the package logs reaches `caplog`, whatever command has run in this process before, and how loud."""
    package = logging.getLogger("hf_safefilter")
    package.handlers.clear()
    package.setLevel(logging.NOTSET)
    package.propagate = True


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; gives (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hf-safefilter", *map(str, words)])
        capsys.readouterr()
        from hf_safefilter.cli import main

        try:
            main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
