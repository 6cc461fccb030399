# Everything is installed into .venv. Stamps keep a step from running again until what it depends on has changed.
#
#   make setup   the package and what the pocket model needs, in the versions of constraints.txt
#   make demo    asks the pocket model about the pictures in demo/
#   make test    style, types and tests
#   make clean   removes .venv and everything that was made here
#
# PYTHON=python3.12 chooses the interpreter, PIP_FLAGS="--index-url ..." the package index.

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module when it first imports it: the thousands that nobody does need no minute of the set-up.
PIP := $(BIN)/python -m pip install --quiet --no-compile $(PIP_FLAGS) -c constraints.txt

.PHONY: setup demo test clean

setup: $(VENV)/.setup

demo: setup
	$(BIN)/python demo/run.py

test: setup $(VENV)/.dev
	@scripts/install-render-packages.sh --check || echo "Tests that draw pages will be skipped or fail without them."
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile

clean:
	rm -rf $(VENV) build demo/out .pytest_cache .ruff_cache
	find src demo tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) -e '.[pocket,serve,read]'
	touch $@

$(VENV)/.dev: $(VENV)/.setup
	$(PIP) -e '.[pocket,train,serve,read,care,dev]'
	touch $@
