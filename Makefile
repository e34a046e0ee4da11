# Everything starts here; `make` alone lists the targets. Each target sets up what it needs and says so.
# Needs: make, and Python 3.11 to 3.14 with its venv module. PYTHON=/path/to/python picks another interpreter.

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
FAST  := .venv-compiled
AGENTS := .venv-frameworks
FRAMEWORKS := openai-agents langgraph autogen

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test frameworks test-frameworks lint format rules compiled test-compiled bench bench-proxies bench-stores bench-detectors bench-waits clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST) | while IFS=: read -r name text; do printf '  make %-15s%s\n' "$$name" "$$text"; done

setup: $(READY)  ## create .venv and install Handrail, its demo and its tests into it
	@echo "setup: $(VENV) is ready; 'source $(BIN)/activate' puts the handrail command on the path"

demo: $(READY)  ## eight real agents, real failures, a live table (about 30 seconds)
	@$(BIN)/handrail demo $(ARGS)

test: $(READY)  ## run all tests; ARGS='tests/wire -x' runs some
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

frameworks: $(FRAMEWORKS:%=$(AGENTS)/%/.ready)  ## install agent frameworks, without which `make test` skips their tests
	@echo "setup: $(AGENTS) is ready; 'make test-frameworks' runs their tests alone"

test-frameworks: $(READY) frameworks  ## run agent frameworks through `handrail run --`, against a scripted model
	@$(BIN)/python -m pytest tests/integration/test_frameworks.py $(ARGS)

lint: $(READY)  ## ruff and mypy in strict mode
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)  ## apply ruff's fixes and its formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

rules: $(READY)  ## run the tests inside the rule packs
	@$(BIN)/handrail rules test

compiled: $(FAST)/.ready  ## the data path as C extensions, installed into .venv-compiled (needs gcc)
	@$(FAST)/bin/handrail --version

test-compiled: $(FAST)/.ready  ## the tests of the compiled modules, and of what uses them, on the compiled build
	@$(FAST)/bin/handrail --version | grep -q '(compiled)'
	@$(FAST)/bin/python -m pytest $(SIDE_BY_SIDE) --override-ini pythonpath=tests $(or $(ARGS),$(COMPILED_TESTS))

bench: $(FAST)/.bench-ready  ## measure all of the following, and say what is reached; ARGS=--quick is short
	@$(FAST)/bin/python tests/bench/suite.py --handrail $(FAST)/bin/python $(ARGS)

bench-proxies: $(FAST)/.bench-ready  ## measure the compiled build beside Envoy, mitmproxy, aiohttp (needs wrk, nginx)
	@$(FAST)/bin/python tests/bench/run.py --handrail $(FAST)/bin/python $(ARGS)

bench-stores: $(FAST)/.bench-ready  ## measure what a Redis store costs behind the compiled build (needs redis-tools)
	@$(FAST)/bin/python tests/bench/stores.py --handrail $(FAST)/bin/python $(ARGS)

bench-detectors: $(FAST)/.bench-ready  ## measure all detectors together on one core, and their memory
	@$(FAST)/bin/python tests/bench/detectors.py $(ARGS)

bench-waits: $(FAST)/.bench-ready  ## measure deadlock detection against rebuilding the wait-for graph
	@$(FAST)/bin/python tests/bench/waits.py $(ARGS)

clean:  ## remove the environments and every cache
	rm -rf $(VENV) $(FAST) $(AGENTS) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dist build

# pip 25.1 is the first that reads [dependency-groups].
$(READY): pyproject.toml
	@python=$$(.ci/python) && \
	echo "setup: creating $(VENV) with $$python ($$($$python --version))" && \
	$$python -m venv --clear $(VENV)
	@echo "setup: installing Handrail and what its demo and tests need (about 1 GB with embedded ClickHouse)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]' --group dev
	@touch $@

$(AGENTS)/%/.ready: pyproject.toml
	@[ -x $(@D)/bin/python ] || { python=$$(.ci/python) && echo "setup: creating $(@D) with $$python" && $$python -m venv $(@D); }
	@echo "setup: installing the group $* of pyproject.toml (100 to 250 MB)"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --group $*
	@touch $@

# Most tests wait for a server or a clock: three files at a time take half the time of one after another.
SIDE_BY_SIDE := --numprocesses 3 --dist loadfile

COMPILED_TESTS := tests/wire tests/dialects tests/detectors tests/schema tests/edge \
	tests/test_pipeline.py tests/test_pipeline_replay.py tests/test_rules.py

# The source is what the wheel is made of, so an edit makes it anew; the environment itself is kept.
$(FAST)/.ready: pyproject.toml hatch_build.py $(shell find collector/handrail rules examples -type f -not -path '*/__pycache__/*')
	@[ -x $(FAST)/bin/python ] || { python=$$(.ci/python --fast) && echo "setup: creating $(FAST) with $$python" && $$python -m venv $(FAST); }
	@$(FAST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@echo "setup: compiling the data path (two minutes) and installing it with what its tests need"
	@rm -rf $(FAST)/wheel
	@HATCH_BUILD_HOOKS_ENABLE=1 $(FAST)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(FAST)/wheel .
	@$(FAST)/bin/python -m pip install --quiet --disable-pip-version-check --group dev "$$(echo $(FAST)/wheel/*.whl)[demo]"
	@$(FAST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(FAST)/wheel/*.whl
	@touch $@

$(FAST)/.bench-ready: $(FAST)/.ready
	@echo "setup: installing what the benchmark compares with"
	@$(FAST)/bin/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@
