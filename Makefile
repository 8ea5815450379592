# make demo    the whole path on this machine: train, pull, quantize, evaluate, serve; needs no Docker and no account
# make test    what CI runs: linters, types, import rules, then the tests; what needs Docker is skipped without it
# make lint    the first three of these
# make lock    locks the versions in the training images again, after a change of the extra `train` or `unsloth`
# make clean   removes .venv, demo/ and the tools' caches
#
# Variables: PYTHON (default python3), DEMO_DIR (demo), WORKERS (2: tests at once), PYTEST_ARGS. Wheels that take minutes to build are kept in
# CLOUDFT_CACHE (default ~/.cache/cloudft). pip's own settings apply; a computer without an NVIDIA GPU saves
# gigabytes when PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS names a place with torch's CPU wheel.

PYTHON ?= python3
DEMO_DIR ?= demo
WORKERS ?= 2
PYTEST_ARGS ?=
BIN := .venv/bin
SETUP := PYTHON="$(PYTHON)" .ci/setup-venv.sh

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint lock clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

demo: .venv/.ready-demo
	@$(BIN)/cloudft demo --directory "$(DEMO_DIR)"

# PYTEST_STATUS names a file that gets pytest's exit code, and make then succeeds: CI ends on pytest's own last line.
test: lint
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS); status=$$?; \
	if [ -n "$$PYTEST_STATUS" ]; then echo $$status >"$$PYTEST_STATUS"; else exit $$status; fi

lint: .venv/.ready-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

lock: .venv/.ready-dev
	@$(BIN)/python .ci/lock_train.py

# Installed again only when a requirement may have changed. The second stamp holds for the first as well.
.venv/.ready-demo: pyproject.toml .ci/setup-venv.sh
	@$(SETUP) demo

.venv/.ready-dev: pyproject.toml .ci/setup-venv.sh
	@$(SETUP) dev

clean:
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find cloudft images infra jobs local tests -name __pycache__ -type d -prune -exec rm -rf {} +
