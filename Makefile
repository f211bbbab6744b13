# One small door to everything. `make help` lists it.

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KILLS ?= 1700
BOMBS ?= 1000000
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
UV_COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --quiet

.PHONY: help setup demo serve test test-formats test-safety fuzz samples check format chaos bench bench-catalogue lock vectors clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: $(VENV)/runtime ## a virtual environment with what Lockstep needs, from the locked list

demo: $(VENV)/runtime ## watch it work: a hub, five devices, one program on all of them
	@$(BIN)/lockstep-hub demo $(ARGUMENTS)

serve: $(VENV)/runtime ## run a hub on 127.0.0.1:8765 with its data in ./lockstep-data
	@$(BIN)/lockstep-hub serve $(ARGUMENTS)

test: $(VENV)/development check ## everything CI runs: format, lint, types, tests
	@sh tests/tools.sh
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGUMENTS)

test-formats: $(VENV)/development ## read real, built, stand-in and damaged installers of every format (CASES=4000 SEED=1)
	@sh tests/tools.sh formats
	@$(BIN)/python -m tests.formats.samples || true
	$(if $(CASES),CASES=$(CASES)) $(if $(SEED),SEED=$(SEED)) $(BIN)/python -m pytest -m formats tests/formats tests/hub/inspectors tests/scanner $(ARGUMENTS)
	@$(BIN)/python -m tests.hub.resolver_figures

test-safety: $(VENV)/development ## isolation of accounts, limits, bombs and a short fuzz, with their counts (BOMBS=5000)
	@sh tests/tools.sh
	@BOMB_MESSAGES=$(BOMBS) SESSION_EXAMPLES=300 FUZZ_EXECUTIONS=200000 DRIPS=5000 \
		$(BIN)/python -m pytest --timeout 900 tests/safety tests/hub/test_audit.py tests/hub/test_audited_acts.py $(ARGUMENTS)

fuzz: $(VENV)/development ## ten million inputs for the codec and the opening, in two processes (EXECUTIONS=100000 SEED=1)
	@$(BIN)/python -m tests.safety.fuzz $(if $(EXECUTIONS),--executions $(EXECUTIONS)) $(if $(SEED),--seed $(SEED))

samples: $(VENV)/development ## bring the real installers the proofs read to ./samples, 86 MB
	@$(BIN)/python -m tests.formats.samples

check: $(VENV)/development ## format, lint and types only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/development ## bring the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(VENV)/development ## kill and break it thousands of times, count what is lost (KILLS=50 SEED=1 PARTS=kills)
	@sh tests/tools.sh
	$(BIN)/python -m tests.chaos $(PARTS) --kills $(KILLS) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/development ## measure this machine (minutes)
	$(BIN)/python -m bench.figures $(ARGUMENTS)

bench-catalogue: $(VENV)/development ## measure resolving in catalogues of up to a million installers (minutes; SIZES=1000)
	$(BIN)/python -m bench.catalogue $(SIZES)

lock: $(VENV)/development ## compile the locked lists anew
	$(UV_COMPILE) --extra build -o requirements.lock
	$(UV_COMPILE) --extra build --extra development -o requirements-development.lock

vectors: $(VENV)/runtime ## write docs/protocol-vectors.json anew
	$(BIN)/python -m protocol.vectors > docs/protocol-vectors.json

clean: ## remove what make made
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Lockstep needs Python 3.11 or newer, and '$(PYTHON)' is not. On Debian: sudo apt-get install python3"; \
		echo "Another one can be named: make PYTHON=python3.12 demo"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) (once)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/runtime: $(VENV)/python requirements.lock pyproject.toml
	@$(PIP) install --require-hashes --only-binary :all: -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/development: $(VENV)/runtime requirements-development.lock
	@$(PIP) install --require-hashes --only-binary :all: -r requirements-development.lock
	@touch $@
