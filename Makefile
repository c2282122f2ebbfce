# Everything a clone needs is Python 3.11-3.13 and make: each target sets up .venv from requirements.lock first.
#
#   make demo     train, predict, evaluate and report on a made-up data set; ends with the path of a page
#   make test     linter, type checker and tests
#   make lint     linter and type checker only
#   make lock     resolve the dependencies anew and write requirements.lock
#   make clean    remove .venv and every cache
#
# PYTHON chooses the interpreter (make test PYTHON=python3.13), WORKERS the test processes, PIP extra options of pip.

PYTHON ?= python3
WORKERS ?= 2
PIP ?=
DEMO ?= demo

BIN := .venv/bin
READY := .venv/.ready

# Two processes of one thread beat one process of two on tensors as small as the tests'.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test lint format lock clean
.DEFAULT_GOAL := test

demo: $(READY)
	$(BIN)/handful demo --out $(DEMO)

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	  "handful needs Python 3.11, 3.12 or 3.13; this is %d.%d. Name another: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The local part of a version (torch's +cpu) names a build, which each machine chooses for itself.
lock:
	rm -rf .lock
	$(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check $(PIP) torch==2.13.0 hatchling setuptools --editable '.[dev]'
	( echo '# Every package of the development environment, exactly. Written by: make lock'; \
	  .lock/bin/python -m pip freeze --all --exclude pip --exclude wheel --exclude handful | sed -E -e '/^(#|-e |nvidia-|cuda-|triton=)/d' -e 's/[+]cpu$$//' ) > requirements.lock
	rm -rf .lock

clean:
	rm -rf .venv .lock .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
