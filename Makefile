# Remit. `make` alone explains itself. Everything is installed into ./.venv; nothing outside the checkout is touched.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BOOT := .uv-bootstrap
UV := $(BOOT)/bin/uv
RUN := .venv/bin/python
export UV_COMPILE_BYTECODE := 1
export UV_PYTHON := $(PYTHON)
export UV_NO_PROGRESS := 1

.PHONY: help setup check lint types format test unit demo bench faults crashes soak model smoke contract wheel clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'
	@echo; echo 'Settings: REMIT_TEST_LANE=given|containers|embedded; NATS_URL and DATABASE_URL name servers of your own; ONCE=1 lets the demo end; SCALE="policy=3 executor=2"'

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit("Remit needs Python 3.11 or newer, found " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(BOOT)
	@$(BOOT)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

.venv/.installed: $(UV) pyproject.toml uv.lock
	@echo "installing into .venv ..."
	@$(UV) sync --quiet --frozen --extra dev
	@touch $@

setup: .venv/.installed ## Install everything into ./.venv (uv comes from PyPI)

check: setup ## Lint, types, import contracts, unit and architecture tests (under a minute)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types unit

lint: setup
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/lint-imports --no-logo | tail -1

types: setup
	@.venv/bin/basedpyright --project pyproject.toml --level error

format: setup ## Format the code and apply safe fixes
	@.venv/bin/ruff check --fix --quiet; .venv/bin/ruff format --quiet

unit: setup ## Unit, architecture and contract tests alone
	@$(RUN) -m pytest -q tests/unit tests/architecture tests/contract

test: setup ## All tests, on embedded NATS and Postgres (or NATS_URL and DATABASE_URL); JOBS=n files at a time
	@$(RUN) -m pytest tests $(if $(NATS_URL)$(DATABASE_URL),,-n $(or $(JOBS),2) --dist loadfile)

demo: setup ## The whole pipeline at work on recorded tasks; stays up until Ctrl-C (ONCE=1: ends, SCALE=...: replicas)
	@exec $(RUN) -m infra.demo $(if $(ONCE),--once) $(if $(SCALE),--scale "$(SCALE)")

bench: setup ## Throughput and latency against a bare nats-py chain in the same run
	@$(RUN) -m tests.bench

faults: setup ## Break things and check every invariant (ROWS=release|quick|all|1,5,8-10 SEED=n RUNS=n JOBS=n)
	@exec $(RUN) -m tests.faults --rows "$(or $(ROWS),release)" --seed $(or $(SEED),1) --runs $(or $(RUNS),1) --jobs $(or $(JOBS),1)

crashes: setup ## Thousands of seeded crash runs (RUNS=10000 SEED=n WORLDS=n)
	@exec $(RUN) -m tests.faults.crashes --runs $(or $(RUNS),200) --seed $(or $(SEED),1) --worlds $(or $(WORLDS),2)

soak: setup ## A random mix of crashes, pauses and server failures (MINUTES=60 SEED=n)
	@exec $(RUN) -m tests.faults.crashes --servers --runs 1000000 --minutes $(or $(MINUTES),60) --seed $(or $(SEED),1)

model: setup ## Explore the executor's protocol exhaustively, with the variants that were rejected
	@exec $(RUN) -m services.executor.model

smoke: setup ## The compose stack for real: one action, a node killed, audit verified (needs Docker)
	@infra/docker/smoke.sh

contract: setup ## Write the JSON Schemas and the AsyncAPI document anew after a change of the contract
	@$(RUN) -m tests.contract.generate

wheel: setup ## Build the wheel: the package `remit`, nothing else
	@$(UV) build --quiet --wheel --out-dir dist && ls dist

clean: ## Remove what the targets above made
	@rm -rf .venv $(BOOT) dist .remit .pytest_cache .ruff_cache .hypothesis .import_linter_cache
