# The verbs of this project. Each one sets up .venv by itself when it has to, and uses nothing else.
#
#   make test ARGS="-k partition"        more arguments for whatever the verb runs
#   make test WORKERS=0 ARGS=--pdb       in one process, as a debugger needs
#   make install PYTHON=python3.12       another interpreter
#   make install TORCH="torch==2.12.0"   another torch

PYTHON ?= python3.11
# The version that the project is developed on. Asked for by number, since the newest one that
# pyproject.toml allows may come as a much larger build.
TORCH  ?= torch==2.13.0
ARGS   ?=
# Processes that share out the tests of `make test`; 0 runs them in one, as a debugger needs.
WORKERS ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench gpu parity soak clean

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## build .venv and install evenflow into it, for development
	@echo "evenflow is installed in $(VENV)"

demo: $(STAMP)  ## plan, predict, train and draw a small model on this machine
	@$(BIN)/evenflow demo $(ARGS)

test: $(STAMP)  ## the tests that CI runs
	@$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not soak and not gpu and not full" $(ARGS)

lint: $(STAMP)  ## format, style, types, and who may import whom
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy $(wildcard src/evenflow benchmarks)
	@$(BIN)/lint-imports --no-logo

bench: $(STAMP)  ## our step and memory beside those of other trainers, here
	@$(BIN)/python -c 'import deepspeed' 2>/dev/null >&2 \
	    || DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip install --quiet --editable '.[dev,bench]' 2>/dev/null >&2 \
	    || echo "deepspeed cannot be had here: its figures will be missing" >&2
	@$(BIN)/python -m benchmarks.peers $(ARGS)

gpu: $(STAMP)  ## the tests that need a CUDA device
	@cuda=$$($(BIN)/python -c 'import torch; print(torch.cuda.is_available())') || exit 1; \
	if [ "$$cuda" != True ]; then echo "no CUDA device here: the GPU tests are skipped"; exit 0; fi; \
	$(PYTEST) -m gpu $(ARGS) || { code=$$?; [ $$code -eq 5 ] || exit $$code; echo "no GPU test matches"; }

parity: $(STAMP)  ## every split of every layout against the whole model, and all else that CI leaves out
	@EVENFLOW_TESTS_MANY=1 $(PYTEST) -m "(parity or full or many) and not gpu" $(ARGS)

soak: $(STAMP)  ## long runs: faults, memory growth, resumes
	@$(PYTEST) -m soak $(ARGS) || { code=$$?; [ $$code -eq 5 ] || exit $$code; echo "no soak test matches"; }

clean:  ## remove caches and build products; .venv and runs stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamp holds the path that .venv was built at, as scripts inside name it: a copied or moved tree reinstalls.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

# A .venv that works here is kept and brought up to date; one that is absent, broken or from elsewhere is built anew.
$(STAMP): pyproject.toml
	@if ! { $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	        && $(BIN)/pip --version | grep -qF "$(CURDIR)/$(VENV)/"; } 2>/dev/null; then \
	    command -v $(PYTHON) >/dev/null || { \
	        echo "there is no $(PYTHON) here; 'make $(or $(MAKECMDGOALS),install) PYTHON=...' with" \
	             "any Python from 3.11 on would work" >&2; exit 2; }; \
	    echo "building $(VENV) with $(PYTHON)"; \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "installing into $(VENV) (minutes when torch is not there yet)"
	@$(BIN)/python -m pip install --quiet "$(TORCH)" \
	    || echo "$(TORCH) cannot be had here: taking the torch that pyproject.toml allows"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@echo "$(CURDIR)" > $@
