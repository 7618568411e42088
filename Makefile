# Everything happens in a virtual environment of its own: nothing has to be installed by hand but Python.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

# One thread for each worker, and no messages of TensorFlow's start-up.
QUIET := TF_CPP_MIN_LOG_LEVEL=3 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 OMP_NUM_THREADS=1

# In parts, each in new processes: every model that was trained leaves some 10 MB in TensorFlow.
PYTEST := $(QUIET) $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: demo test test-full lint docs clean

demo: $(VENV)/.installed
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/lipdp demo

test: lint
	$(PYTEST) -m "not full" tests/training
	$(PYTEST) -m "not full" tests/layers
	$(PYTEST) -m "not full" tests --ignore=tests/training --ignore=tests/layers

test-full: lint docs
	$(PYTEST) tests/training
	$(PYTEST) tests/layers
	$(PYTEST) tests --ignore=tests/training --ignore=tests/layers
	$(BIN)/python tests/wheel_check.py

lint: $(VENV)/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --diff --quiet .

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed: setup.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info lipdp-demo
