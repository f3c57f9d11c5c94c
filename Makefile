# Each target does all its own set-up in $(VENV).
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test setup lint bench clean

demo: setup ## train 24 runs on 8x8 digits, then print the table and draw the figures into runs/demo/report
	$(BIN)/python train.py -m +experiment=demo
	$(BIN)/python -m analysis runs/demo

test: setup ## run all tests (those on real images when DATA_DIR is set)
	$(BIN)/python -m pytest -n 2 -q

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[harness,cluster,dev]'
	touch $@

lint: setup ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup ## the training step beside its matrix products
	$(BIN)/python -m training.benchmark

clean: ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
