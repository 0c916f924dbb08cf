# Two commands on a fresh machine with Python ≥ 3.11: `make demo` and `make test`. Each sets itself up; a second call is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes, each with a Ray of its own: for half of their time tests only wait for processes to start.
# tests/conftest.py says which tests one process must run, and in which order.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed
# Tests start hundreds of processes. Without byte code on the disk each of them would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test fast test-slow torture lint lint-style lint-types lint-dependencies style bench install

demo: $(INSTALLED)
	$(BIN)/raycluster demo >/dev/null

test: $(INSTALLED)
	$(MAKE) --no-print-directory --jobs=2 lint
	$(PYTEST)

# While one works: the tests without Ray, processes, servers and real data: about a minute.
fast: $(INSTALLED)
	$(PYTEST) -p no:schemathesis $(addprefix --ignore tests/,serving training compute gpu torture) -m "fast and not long and not slow and not torture"

# What is slow by nature: whole runs with logical GPUs, with several nodes or workers, notebooks, browsers of many sizes.
test-slow: $(INSTALLED)
	$(PYTEST) -m "slow and not torture"

# Kills, soaks and fuzzing: minutes each.
torture: $(INSTALLED)
	$(BIN)/pytest -m torture --timeout 1800

# Mend the style of the code as far as ruff can.
style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The benchmarks that need no data and end within minutes; CONTRIBUTING.md names the others.
bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/clustering.py --sizes 10000 --clusters 100
	$(BIN)/python tests/benchmarks/consensus.py --sizes 10000 --clusters 100 --threads 2
	$(BIN)/python tests/benchmarks/training.py --rows 20000 --clusters 100 --steps 10
	$(BIN)/python tests/benchmarks/decode.py --rows 128

lint: lint-types lint-style lint-dependencies

lint-types: $(INSTALLED)
	$(BIN)/mypy

lint-style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-dependencies: $(INSTALLED)
	$(BIN)/deptry .
	$(BIN)/deptry tests --exclude '\.venv' --ignore DEP002,DEP004

install: $(INSTALLED)

# Rebuilt when the dependencies change; the code itself is installed in place.
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raycluster needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
