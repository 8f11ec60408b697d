# Every target sets up what it needs: a virtual environment in .venv, made anew only when the requirements change.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo verify test lint bench clean

help:           ## show the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

setup: .venv/ready  ## install everything into .venv

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/nearest_etf  # shows mypy the installed names
	touch $@

test: lint      ## formatting, lint, types, and all tests
	$(BIN)/pytest -q

lint: setup     ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.venv/typing $(BIN)/mypy -p nearest_etf.reference -p nearest_etf.torchport -p nearest_etf.export
	MYPYPATH=.venv/typing $(BIN)/mypy tests benchmarks

verify: setup   ## check the solver numerically
	$(BIN)/etf-verify

clean:          ## remove what the targets made, runs/ excepted
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
