# Two commands for a newcomer: make demo, make test. Everything else serves those who change the code.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= qwen2.5-coder-0.5b

.PHONY: demo test check bench docs reproduce ci format

.venv/run: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch -c constraints.txt && $(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/run
	$(BIN)/crystallized run $(MODEL) --preset quick --output results/demo

test: .venv/dev
	$(BIN)/python -m pytest

check: .venv/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/lint-imports && $(BIN)/deptry .

format: .venv/dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

ci: check test

bench: .venv/run
	$(BIN)/python -m benchmarks.sweep --short

docs: .venv/dev
	$(BIN)/cog -r docs/cli.md

reproduce: .venv/run
	$(BIN)/python scripts/reproduce_figures.py
