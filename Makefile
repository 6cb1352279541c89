# Everything runs in .venv, which is made once from pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# Most of the time of tests is that of compiling what runs once; the proofs optimize.
UNOPTIMIZED := --xla_backend_optimization_level=0

.PHONY: compare bench test proofs accelerated floors check format env clean

compare: env  ## seven model families on real scans of digits: a table, a report, figures
	$(BIN)/python -m experiments.compare --task=digits --train_sizes=100,400,all --out=runs/digits

bench: env  ## speed and memory of this machine beside other frameworks; docs/benchmarks.md
	$(BIN)/python -m experiments.bench --docs

test: env  ## values, gradients, doctests, command lines
	XLA_FLAGS=$(UNOPTIMIZED) $(BIN)/python -m pytest -n 2 --dist=worksteal -m "not slow"

proofs: env  ## the longer tests
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m slow

accelerated: env  ## the operators on a GPU that JAX finds, and their gradients
	JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -n 8 tests/lowering/test_cuda.py

floors: env  ## what each kind of task must reach: an hour, with the data of BUILD.md
	$(BIN)/python -m pytest -s tests/floors.py

check: env  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

env: .venv/made

.venv/made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attnconv needs Python 3.11 or later; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
