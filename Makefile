# `make run`, `make test` and `make dev` set everything up by themselves: python3 and make suffice.
PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)/.mlops/dagster
export DAGSTER_DISABLE_TELEMETRY ?= yes

.PHONY: help setup run test test-browser faults bench peers dev check lock audit sbom clean
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is %d.%d. Name another one: make PYTHON=python3.12 …" % sys.version_info[:2])'
	@echo "setting up .venv with the locked packages: a few minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.mlops/dagster/dagster.yaml:
	@mkdir -p $(@D) && ln -s ../../dagster.yaml $@

setup: .venv/installed  ## the virtual environment with the locked packages

run: setup .mlops/dagster/dagster.yaml  ## materialise the shipped pipelines
	$(BIN)/mlops run

# Many tests wait for servers and time-outs, so that more workers than there are cores are fed.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 2)')
test: setup  ## the tests that need nothing but Python
	$(BIN)/pytest -n $(WORKERS) -m "not browser"

test-browser: setup  ## the tests that drive the UI; they need Chromium
	$(BIN)/pytest -m browser

FAULTS ?= 5
FAULTS_LOG := .mlops/faults.jsonl
faults: setup  ## inject FAULTS (5) times the faults of `make test`, and write docs/reliability.md anew
	@mkdir -p $(dir $(FAULTS_LOG)) && rm -f $(FAULTS_LOG)
	export MLOPS_TEST_FAULTS=$(FAULTS) MLOPS_TEST_FAULTS_LOG=$(CURDIR)/$(FAULTS_LOG); \
	$(BIN)/pytest -m faults mlops_assets_tests/faults; code=$$?; \
	$(BIN)/python -m mlops_assets_tests.faults.report $(FAULTS_LOG) && exit $$code

ROUNDS ?= 5
bench: setup  ## measure everything in ROUNDS (5) rounds, and write docs/benchmarks.md anew
	$(BIN)/python -m benchmarks --rounds $(ROUNDS)

peers: setup  ## install the other tools that `make bench` compares with (2 GB)
	$(BIN)/python -m benchmarks.peers --install

dev: setup .mlops/dagster/dagster.yaml  ## the Dagster UI on http://localhost:3000
	$(BIN)/dagster dev --workspace workspace.yaml

check: setup  ## lint, format, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

COMPILE := $(BIN)/uv pip compile --quiet --universal --no-strip-extras --generate-hashes \
	--python-version 3.11
lock: setup  ## pin the newest allowed packages in requirements.lock, and the image's
	$(COMPILE) --extra dev --extra k8s --upgrade --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra k8s --constraint requirements.lock --output-file k8s/requirements.lock \
		pyproject.toml
	$(COMPILE) --extra k8s --extra gpu --constraint requirements.lock \
		--output-file k8s/requirements-gpu.lock pyproject.toml
	echo hatchling | $(COMPILE) --constraint requirements.lock \
		--output-file k8s/requirements-build.lock -

audit: setup  ## known vulnerabilities of the locked packages
	$(BIN)/python .ci/audit.py

LOCK ?= requirements.lock
sbom: setup  ## sbom.cdx.json: what LOCK installs, as a CycloneDX bill of materials
	$(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements $(LOCK) \
		--pyproject pyproject.toml --output-reproducible --validate --output-file sbom.cdx.json

clean:  ## remove the virtual environment and everything that the project stored in the checkout
	rm -rf .venv .mlops
