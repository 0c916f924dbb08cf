# Two commands on a fresh machine with Python ≥ 3.11: `make demo` and `make test`. Each sets itself up; a second call is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes, each with a Ray of its own: for half of their time tests only wait for processes to start.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow torture lint install

demo: $(INSTALLED)
	$(BIN)/raycluster demo >/dev/null

test: lint
	$(PYTEST)

# What is slow by nature: whole runs with logical GPUs, with several nodes or workers, browsers of many sizes.
test-slow: $(INSTALLED)
	$(PYTEST) -m slow

# Kills, soaks and fuzzing: minutes each.
torture: $(INSTALLED)
	$(BIN)/pytest -m torture --timeout 1800

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry .
	$(BIN)/deptry tests --exclude '\.venv' --ignore DEP002,DEP004

install: $(INSTALLED)

# Rebuilt when the dependencies change; the code itself is installed in place.
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raycluster needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
