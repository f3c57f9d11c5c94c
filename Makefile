# Each target does all its own set-up in $(VENV).
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test setup lint bench gpu certificates paper reference leaderboard entry noise classes matrix docs clean

demo: setup ## train 24 runs on 8x8 digits, then print the table, figures and an interactive page into runs/demo/report
	$(BIN)/python train.py -m +experiment=demo
	$(BIN)/python -m analysis runs/demo
	$(BIN)/python -m analysis.report runs/demo
	@echo
	@echo "To go on in this terminal, activate the environment:  . $(BIN)/activate"
	@echo "Then, for example:  python train.py -m estimator=nvil,rloo replicas=3 sweep=mine"

test: setup ## run all tests (those on real images when DATA_DIR is set): a quarter of an hour on two cores
	@echo "All tests: about 15 minutes on two cores. Why one was skipped stands at the end."
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q -rs --durations=10

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[harness,cluster,dev,docs]'
	touch $@

lint: setup ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup ## the documentation as a site in build/site, readable offline; a warning or a broken link is an error
	$(BIN)/python -m training.documents.site build/site

matrix: setup ## the wheel in empty environments: every Python that is found, and the lowest versions of pyproject.toml
	$(BIN)/python tests/matrix.py

bench: setup ## what a gradient of every estimator costs; the training step beside its matrix products and its peers
	$(BIN)/python -m training.benchmarks.estimators
	$(BIN)/python -m training.benchmark
	$(BIN)/python -m training.benchmarks.evaluation

gpu: ## on a machine with a GPU: speeds, profile, tests on CUDA, kill and resume, in 8 minutes; no set-up, no network
	$(PYTHON) -m training.benchmarks.gpu

CERTIFICATES = docs/results/certificates

certificates: setup ## measure bias and variance of every estimator; tables and figures of docs/estimators.md anew
	$(BIN)/python -m estimators.check --json $(CERTIFICATES)/certificates.json
	$(BIN)/python -m training.documents.table docs/estimators.md $(CERTIFICATES)/certificates.json
	$(BIN)/python -m analysis.papers.certificates $(CERTIFICATES)/certificates.json $(CERTIFICATES)

RECORDS =

paper: setup ## every table and figure of docs/results anew from the runs in runs/ (or RECORDS=FILE), and which runs are missing
	$(BIN)/python -m training.paper $(if $(RECORDS),--records $(RECORDS))

EXPERIMENTS = jang_table1 every_estimator
BUDGET = medium
MINUTES = 8

reference: ## train what is missing of EXPERIMENTS at BUDGET within MINUTES, and pack the records; no set-up, no network
	$(PYTHON) -m training.reference $(EXPERIMENTS) --budget $(BUDGET) --minutes $(MINUTES)

leaderboard: setup ## docs/results/leaderboard.md anew from every committed reference.json and the certificates
	$(BIN)/python -m analysis.papers.leaderboard
	$(BIN)/python -m analysis.papers.agreement

EXPERIMENT = jang_table1

entry: setup ## a row of the leaderboard: make entry ESTIMATOR=module:Class BY="A. Name" [EXPERIMENT= BUDGET= OPTIONS=]
	$(BIN)/python -m training.documents.entry "$(ESTIMATOR)" --by "$(BY)" --experiment "$(EXPERIMENT)" --budget "$(BUDGET)" $(OPTIONS)

noise: setup ## the library's Gumbel noise that the interactive page shows
	$(BIN)/python -m training.documents.draws analysis/page/gumbel_noise.json

SEMI_SUPERVISED = docs/results/semi_supervised

classes: setup ## steps per second against the number of classes, marginalised and sampled; the figure of docs/results anew
	$(BIN)/python -m training.benchmarks.classes $(SEMI_SUPERVISED)/speed.json
	$(BIN)/python -m analysis.papers.class_speed $(SEMI_SUPERVISED)/speed.json $(SEMI_SUPERVISED)

clean: ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
