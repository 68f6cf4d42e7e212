# make quickstart   install the core and run the main job
# make test         install what the tests need and run them all
# make check        formatter, linter, type checker, freshness of generated docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
STAMPS := $(VENV)/.stamps

.PHONY: quickstart install test quick-test check format docs clean

quickstart: $(STAMPS)/core
	$(BIN)/diptych quickstart

install: $(STAMPS)/core

# torch first and pinned: a later resolver must not replace it by a build with CUDA.
$(STAMPS)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: $(STAMPS)/core
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	sh tests/system_packages.sh
	# A real SentencePiece model for tests/field lies in this package, which need not be installed.
	$(PIP) download --quiet --no-deps --constraint constraints.txt --dest $(VENV)/field mistral-common
	touch $@

test: $(STAMPS)/dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# The tests that take no more than three seconds each, while working.
quick-test: $(STAMPS)/dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

check: $(STAMPS)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

format: $(STAMPS)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMPS)/dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info
