# Everything from nothing: `make quickstart` and `make test` need Python 3.11 or later, make, and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= 1

.PHONY: help quickstart test test-fast test-system chaos lint format bench lock clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The lock file has every version; the package itself is installed without looking for more.
$(STAMP): cluster/requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sftray needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r cluster/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

quickstart: $(STAMP)  ## train the small model that ships, on two workers, and show it before and after
	$(BIN)/sftray train quickstart

test: $(STAMP)  ## all tests that need only Python; those with Ray share one cluster
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not ray and not system and not chaos"
	$(BIN)/python -m pytest -q -m "ray and not system and not chaos"

test-fast: $(STAMP)  ## the quick ones of them, in about a minute: no Ray, no whole runs
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not ray and not system and not chaos" \
		--durations=3 --durations-min=1

test-system: $(STAMP)  ## tests that need Debian packages or root
	$(BIN)/python -m pytest -q -m "system and not chaos"

chaos: export CHAOS_OUT := $(CURDIR)/.chaos.jsonl
chaos: export CHAOS_SEED := $(SEED)
chaos: $(STAMP)  ## the whole matrix of faults, whose table it puts into the README (disks and networks as root alone, with tests/system-packages.txt): SEED=1
	rm -f .chaos.jsonl
	$(BIN)/python -m pytest -q $(if $(filter-out 0,$(shell id -u)),-m 'not system') tests/chaos \
		$(patsubst %,tests/train_fn/test_%.py,store store_trouble lease resume checkpoint_protocol step prepare_processes) \
		$(patsubst %,tests/cluster/test_%.py,failures_on_ray crew); \
	failed=$$?; $(BIN)/python tests/support/outcomes.py .chaos.jsonl README.md $(SEED) && exit $$failed

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p sftray

format: $(STAMP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## speed and memory, as ratios within one run
	$(BIN)/python tests/bench/train_step.py
	$(BIN)/python tests/bench/preparation.py
	$(BIN)/python tests/bench/trials.py
	$(BIN)/python tests/bench/scale.py

lock:  ## resolve the newest allowed versions into cluster/requirements.txt
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet 'torch==2.13.0' 'ray[default,train,tune]==2.60.0' '.[dev]' 'setuptools>=77'
	.venv-lock/bin/python cluster/lock.py > cluster/requirements.txt.new
	mv cluster/requirements.txt.new cluster/requirements.txt
	rm -rf .venv-lock

clean:  ## remove what make has made
	rm -rf $(VENV) .venv-lock build dist *.egg-info
