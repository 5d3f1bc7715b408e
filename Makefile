# README's two commands are `make quickstart` and `make test`; each makes its own environment first, and may be repeated.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= .ci/constraints.txt
SIZE ?= full
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)
PLUGINS := $(patsubst %/pyproject.toml,-e %,$(wildcard plugins/*/pyproject.toml))
DEV_PLUGINS := $(patsubst %/pyproject.toml,-e "%[dev]",$(wildcard plugins/*/pyproject.toml))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint=,$(CONSTRAINTS))
export TOKENIZERS_PARALLELISM := true
unexport PYTHONDONTWRITEBYTECODE  # else each process of the tests compiles the package again

.PHONY: quickstart test test-slow check docs golden constraints test-lowest test-newest release fix clean
quickstart: $(VENV)/unicl
	$(BIN)/python docs/quickstart.py --size $(SIZE)

test: $(VENV)/dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile

check: $(VENV)/dev
	$(BIN)/ruff format --check --diff .
	$(BIN)/ruff check .
	$(BIN)/pyright
	PYTHONPATH=tests/plugins/unicl-odd $(BIN)/lint-imports --no-logo --no-cache

docs: $(VENV)/dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/unicl recipes schema > recipes/recipe.schema.json

golden: docs
	$(BIN)/python -m pytest -q --update-golden tests/test_help.py tests/data/test_corpus.py tests/recipe/test_recipe.py
	git diff --stat tests/golden

# The exact versions that are tested, from the newest that resolve together. Run the tests before you commit the file.
constraints:
	rm -rf .venv-newest
	$(MAKE) .venv-newest/dev VENV=.venv-newest CONSTRAINTS=
	.venv-newest/bin/python -m pip list --format=freeze --exclude-editable | grep -vE '^(pip|setuptools|wheel)==' > .ci/constraints.txt

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

# With the lowest versions that pyproject.toml allows.
test-lowest:
	$(PYTHON) .ci/lowest.py $(PROJECTS) > .ci/lowest.txt
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=.ci/lowest.txt

# The sdist and the wheel, each installed into an empty environment and tried.
release: $(VENV)/dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/try_release.py dist $(CONSTRAINTS)

fix: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# hatchling and its editables come from the index at build time
$(VENV)/unicl: $(PROJECTS) $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unicl needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[systems]" $(PLUGINS)
	touch $@

$(VENV)/dev: $(VENV)/unicl
	$(PIP) -e ".[dev]" $(DEV_PLUGINS)
	touch $@

clean:
	rm -rf .venv .venv-newest .venv-lowest quickstart dist
