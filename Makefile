# The project's commands. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
PORT ?= 5000
BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup repro test slow browser tiny reproduce ui sync lint format lock bench

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## create .venv from the hash-pinned lock (the second call installs nothing)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# uv alone from the same lock, then everything else with it
	@sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^    --hash/p}' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e .
	@touch $@

repro: $(READY) ## run the pipeline: prepare, train, evaluate, report
	dvc repro && status=0 || status=$$?; python -m pipeline.tracking sync || true; exit $$status

test: $(READY) ## run the default tests (no network, no GPU)
	pytest -n 2 --dist loadfile $(PYTEST_ARGS)

slow: $(READY) ## run the tests that take minutes
	pytest -m slow $(PYTEST_ARGS)

browser: $(READY) ## run the tests that look at the MLflow UI and the report in Chromium
	pytest -m browser $(PYTEST_ARGS)

tiny: $(READY) ## run the tiny pipeline in a temporary experiment; the workspace stays as it is
	@LC_ALL=C; case "$$(pwd -P)" in (*[!\ -~]*) \
	  echo "error: DVC's temporary experiments fail in a path with other letters than ASCII ($$(pwd -P)); move the project" >&2; exit 1;; esac
	@# SmolLM2 would take a minute for the test documents
	dvc exp run --temp --force --name tiny -S common.profile=tiny \
	  -S train_language_model.language_model=scratch && status=0 || status=$$?; \
	  python -m pipeline.tracking sync || true; exit $$status

reproduce: $(READY) ## repeat a run and compare: make reproduce RUN=<mlflow run id>
	python -m pipeline.reproduce $(RUN)

ui: $(READY) ## open the MLflow UI on http://127.0.0.1:5000 (PORT=… for another)
	python -m pipeline.tracking ui --port $(PORT)

sync: $(READY) ## send what could not be sent to the tracking store
	python -m pipeline.tracking sync

lint: $(READY) ## formatter, linter, types, module walls, security
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache
	bandit -q -c pyproject.toml -r pipeline stages

format: $(READY) ## format and fix what can be fixed
	ruff format .
	ruff check --fix .

lock: ## regenerate requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --group dev --group models pyproject.toml -o requirements.lock

bench: $(READY) ## measure what the README and docs claim
	python -m bench
