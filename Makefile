# README's two commands are `make quickstart` and `make test`; each makes its own .venv first, and both may be repeated.
PYTHON ?= python3
BIN := .venv/bin
SIZE ?= full
PLUGINS := $(wildcard plugins/*/pyproject.toml tests/plugins/*/pyproject.toml)
export TOKENIZERS_PARALLELISM := true

.PHONY: quickstart test test-slow check docs golden fix clean
quickstart: .venv/installed
	$(BIN)/python docs/quickstart.py --size $(SIZE)

test: .venv/installed
	$(BIN)/pytest -q -n 2 --dist loadfile

test-slow: .venv/installed
	$(BIN)/pytest -q -m slow -n 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check --diff .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo --no-cache

docs: .venv/installed
	$(BIN)/python docs/make_reference.py
	$(BIN)/unicl recipes schema > recipes/recipe.schema.json

golden: docs
	$(BIN)/pytest -q --update-golden tests/test_help.py tests/data/test_corpus.py tests/recipe/test_recipe.py -k "golden or read or line"
	git diff --stat tests/golden

fix: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# hatchling and its editables come from the index at build time; plugins need the core in the same command
.venv/installed: pyproject.toml $(PLUGINS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unicl needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" $(foreach plugin,$(dir $(PLUGINS)),-e "$(plugin)[dev]")
	touch $@

clean:
	rm -rf .venv quickstart
