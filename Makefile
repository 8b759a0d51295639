PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv

.PHONY: install demo test check bench

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: install
	$(VENV)/bin/hf-safefilter demo --output out/demo

test: install check
	$(VENV)/bin/python -m pytest -n auto --dist loadgroup

check: install
	$(VENV)/bin/ruff check .

bench: install
	$(VENV)/bin/python -m benchmarks
