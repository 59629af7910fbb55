# Every recipe sets up what it needs: `make serve` and `make test` work on a fresh clone with Python 3.11+ and make.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 5000
DATA ?= ./data
WORKERS ?=
HTPASSWD ?=
OPEN ?=
FULL ?=
# Tests that do not mind others beside them; the rest want the machine for themselves, for memory, crowds and deadlines.
BESIDE := tests/faults tests/fuzz tests/metadata tests/model tests/storage
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.run-ready
DEV := $(VENV)/.dev-ready
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install

.DEFAULT_GOAL := help
.PHONY: help setup serve test check fix stock systemd clients conformance faults bench requirements

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' Makefile

setup: $(RUN) ## make the virtual environment, .venv, with what the registry needs

serve: $(RUN) ## a working registry on 127.0.0.1:5000, data in ./data (PORT= DATA= HOST= WORKERS= HTPASSWD= OPEN=1)
	@exec $(BIN)/lading serve --host $(HOST) --port $(PORT) --data $(DATA) $(if $(WORKERS),--workers $(WORKERS)) \
	  $(if $(HTPASSWD),--htpasswd $(HTPASSWD)) $(if $(OPEN),--open)

test: $(DEV) ## the fast suite, about three minutes
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests

check: $(DEV) ## style, types, floors, changelog
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(DEV) ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

stock: $(DEV) ## the fast suite once more, under uvicorn's own protocol class where that will do (CI: on the newest Python)
	PYTHONPATH=$(CURDIR)/tests/stock $(BIN)/python -m pytest -q -n 2 -m "not slow and not own_wire" tests
	$(BIN)/python -m pytest -q -n 2 -m "not slow and own_wire" tests/capability

clients: $(DEV) ## real clients push and pull, with and without a login (FULL=1 builds the dear ones, too)
	tests/clients/install clients $(if $(FULL),dear)
	LADING_FULL=$(FULL) $(BIN)/python -m tests.clients.matrix

systemd: $(DEV) ## the shipped units under a real systemd; journal and log files with real journald and logrotate (needs root)
	tests/clients/install systemd
	$(BIN)/python -m pytest -q -n 2 tests/systemd
	$(BIN)/python -m pytest -q tests/logs

conformance: $(DEV) ## the official OCI suite, nothing failed, nothing skipped
	tests/clients/install conformance
	$(BIN)/python -m tests.conformance.run

faults: $(DEV) ## kill, cut and starve the server; nothing acknowledged is lost (FULL=1 runs all)
	tests/clients/install faults
	@export LADING_FULL=$(FULL) LADING_SEED=$${LADING_SEED:-$$(od -An -N4 -tx4 /dev/urandom | tr -d ' ')}; \
	echo "To draw the same again: LADING_SEED=$$LADING_SEED" && \
	$(BIN)/python -m pytest -q -n 2 -m slow $(BESIDE) && \
	$(BIN)/python -m pytest -q -m slow tests --ignore=tests/logs $(BESIDE:%=--ignore=%)

bench: $(DEV) ## beside distribution v3 and nginx, in one run
	tests/clients/install bench
	$(BIN)/python bench/run.py

requirements: ## compile requirements/*.txt again from *.in (needs uv on the PATH)
	cd requirements && for name in run build dev; do \
	  uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command 'make requirements' $$name.in -o $$name.txt || exit 1; done

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Lading needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, about half a minute) ..."
	@$(PYTHON) -m venv $(VENV)

$(RUN): requirements/run.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@$(PIP) --require-hashes -r requirements/run.txt -r requirements/build.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements/dev.txt $(RUN)
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@
