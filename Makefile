# Everything starts here; `make` alone lists the targets. Each target sets up what it needs and says so.
# Needs: make, and Python 3.11 to 3.14 with its venv module. PYTHON=/path/to/python picks another interpreter.

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint format rules bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' $(MAKEFILE_LIST) | while IFS=: read -r name text; do printf '  make %-8s%s\n' "$$name" "$$text"; done

setup: $(READY)  ## create .venv and install Handrail, its demo and its tests into it
	@echo "setup: $(VENV) is ready; 'source $(BIN)/activate' puts the handrail command on the path"

demo: $(READY)  ## five real agents, real failures, a live table (about 30 seconds)
	@$(BIN)/handrail demo $(ARGS)

test: $(READY)  ## run all tests; ARGS='tests/wire -x' runs some
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## ruff and mypy in strict mode
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)  ## apply ruff's fixes and its formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

rules: $(READY)  ## run the tests inside the rule packs
	@$(BIN)/handrail rules test

bench: $(READY) $(VENV)/.bench-ready  ## measure beside Envoy, mitmproxy and aiohttp (needs wrk and nginx)
	@$(BIN)/python tests/bench/run.py $(ARGS)

clean:  ## remove the environments and every cache
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dist build

# pip 25.1 is the first that reads [dependency-groups].
$(READY): pyproject.toml
	@python=$$(.ci/python) && \
	echo "setup: creating $(VENV) with $$python ($$($$python --version))" && \
	$$python -m venv --clear $(VENV)
	@echo "setup: installing Handrail and what its demo and tests need (about 1 GB with embedded ClickHouse)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]' --group dev
	@touch $@

$(VENV)/.bench-ready: $(READY)
	@echo "setup: installing what the benchmark compares with"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@
