# Every target creates what it needs: a virtual environment in .venv, rebuilt only when the requirements change.
PYTHON ?= python3
BIN := .venv/bin
# An editable install links every file of the package: it is repeated when a file is added or removed.
SOURCES := $(sort $(shell find root common reference torchport export -type f -not -name '*.pyc'))

.PHONY: help setup demo verify test test-oldest test-integrations test-faults faults-of-files faults-of-commands lint bench docs release clean

help:           ## show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

setup: .venv/ready  ## install everything into .venv
	@printf '%s\n' $(SOURCES) | cmp -s - .venv/sources || { \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e . && printf '%s\n' $(SOURCES) > .venv/sources; }

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@printf '%s\n' $(SOURCES) > .venv/sources
	touch $@

DEMO := runs/demo
demo: setup     ## verify, train three heads, report, export, check, predict: about a minute
	$(BIN)/etf-verify
	$(BIN)/etf-train sweep digits --heads learned fixed implicit --seeds 3 --output $(DEMO) --overwrite
	$(BIN)/etf-report $(DEMO)/*-seed* --to $(DEMO)/report.html $(DEMO)/report.png
	$(BIN)/etf-export $(DEMO)/implicit-seed0 --to $(DEMO)/model.onnx --samples 40 --overwrite
	$(BIN)/etf-predict $(DEMO)/model.onnx $(DEMO)/model-samples --score --format csv > $(DEMO)/predictions.csv
	@printf '\nmade in %s:\n' $(DEMO); cd $(DEMO) && ls -1 */config.json */metrics.csv */last.pt *.onnx *.json *.csv *.png *.html

test: lint      ## formatting, lint, types, and all tests, in one process per core (at most four)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

test-oldest:    ## all tests with the oldest versions that pyproject.toml allows, in build/oldest (see .ci/oldest.py for PINS)
	OMP_NUM_THREADS=1 $(PYTHON) .ci/oldest.py $(PINS)

test-integrations:  ## tests with timm and torchvision, in build/integrations: 6 GB (see .ci/integrations.py)
	OMP_NUM_THREADS=1 $(PYTHON) .ci/integrations.py

test-faults: setup  ## all fault tests: files, kills, full disks, command lines, long runs; into tests/faults/results
	$(MAKE) -j 2 faults-of-files faults-of-commands

faults-of-files:
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.mutate_files
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.mutations
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.long_run

faults-of-commands:
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.kill_points
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.surroundings
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.command_lines

lint: setup     ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p nearest_etf
	$(BIN)/mypy tests benchmarks examples

verify: setup   ## check the solver numerically
	$(BIN)/etf-verify

bench: setup    ## every speed claim, against its peers (see benchmarks/)
	$(BIN)/python benchmarks/solver.py --quick
	$(BIN)/python benchmarks/layer.py --quick
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/step_overhead.py --quick
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/training.py --quick
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/export.py

docs: setup     ## the site, into build/docs, with warnings as errors
	rm -rf build/docs
	$(BIN)/sphinx-build -W --keep-going -n -q -j auto -b html docs build/docs
	@printf 'made build/docs/index.html\n'

release:        ## build wheel and sdist into dist/, reproducibly, and check them
	$(PYTHON) -m venv build/release
	build/release/bin/pip install --quiet --disable-pip-version-check build
	build/release/bin/python .ci/release.py dist

clean:          ## remove the outputs of the targets, except runs/
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
