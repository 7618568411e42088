# Everything happens in a virtual environment of its own: nothing has to be installed by hand but Python.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

# One thread for each worker, and no messages of TensorFlow's start-up.
QUIET := TF_CPP_MIN_LOG_LEVEL=3 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 OMP_NUM_THREADS=1

# In parts, each in new processes: every model that was trained leaves some 10 MB in TensorFlow.
PYTEST := $(QUIET) $(BIN)/python -m pytest -n $(WORKERS)
# `deel` is a namespace without an `__init__.py`; the tests' own folders are not.
DOCTEST := $(PYTEST) --doctest-modules -o consider_namespace_packages=true deel

.PHONY: demo test test-full lint docs notebooks bench clean

demo: $(VENV)/.installed
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/lipdp demo

test: lint
	$(PYTEST) -m "not full" tests/training
	$(PYTEST) -m "not full" tests/layers
	$(PYTEST) -m "not full" tests --ignore=tests/training --ignore=tests/layers
	$(DOCTEST)

test-full: lint docs
	$(PYTEST) tests/training
	$(PYTEST) tests/layers
	$(PYTEST) tests --ignore=tests/training --ignore=tests/layers
	$(DOCTEST)
	$(BIN)/python tests/wheel_check.py

lint: $(VENV)/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --diff --quiet .
	@$(BIN)/mypy --no-error-summary --cache-dir=$(VENV)/mypy

docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed: setup.py pyproject.toml
	@test -x $(BIN)/python || (echo "Installing into $(VENV): 2.5 GB, most of it TensorFlow." && $(PYTHON) -m venv $(VENV))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

# The outputs of the tutorials, on the real data: some ten minutes. TensorFlow's messages stay out of them.
notebooks: $(VENV)/.installed
	@rm -rf build/notebooks && mkdir -p build/notebooks && cp docs/notebooks/*.ipynb build/notebooks
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False \
	  --ExecutePreprocessor.extra_arguments="--IPKernelApp.capture_fd_output=False" build/notebooks/*.ipynb
	@cp build/notebooks/*.ipynb docs/notebooks && $(BIN)/ruff format --quiet docs/notebooks

# Two hours on an idle machine, most of it the peers'.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/costs.py --output benchmarks/results/costs.json
	$(BIN)/python benchmarks/padding.py --output benchmarks/results/padding.json
	$(BIN)/python benchmarks/run.py largest --output benchmarks/results/largest.json
	for framework in keras opacus tf_privacy jax; do \
	  $(BIN)/python benchmarks/run.py steps --framework $$framework \
	    --output benchmarks/results/steps_$$framework.json || exit 1; done
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) build dist site *.egg-info lipdp-demo
