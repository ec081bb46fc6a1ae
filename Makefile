# make demo   sets up and shows a dark feed come out bright and doubled
# make test   sets up and runs all tests
# make check  formatting, lint and types
# make bench  the figures of docs/benchmarks.md, for this machine

PYTHON ?= python3
EXTRAS ?= view
BIN := .venv/bin

.PHONY: install demo check test bench

install: .venv/installed-$(EXTRAS)

.venv/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: install
	$(BIN)/nightbridge demo

check:
	$(MAKE) install EXTRAS=dev,train,view
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test:
	$(MAKE) install EXTRAS=dev,train,view
	$(BIN)/python -m pytest

bench:
	$(MAKE) install EXTRAS=dev,train,view
	$(BIN)/nightbridge bench
