# make demo   sets up and shows a dark feed come out bright and doubled
# make test   sets up and runs all tests
# make check  formatting, lint and types
# make bench  the figures of docs/benchmarks.md, for this machine
#
# PYTHON=python3.12 behind any of them names the Python that .venv is made with

PYTHON ?= python3
EXTRAS ?= view
BIN := .venv/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: install demo check test bench

install: .venv/installed-$(EXTRAS)

.venv/installed-%: pyproject.toml
	@$(BIN)/python -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null || { \
	    $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	        echo '$(PYTHON) is missing or older than 3.11: name another one, as in: make demo PYTHON=python3.11' >&2; \
	        exit 1; }; \
	    echo '$(PYTHON) -m venv --clear .venv'; \
	    $(PYTHON) -m venv --clear .venv; }
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
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

bench:
	$(MAKE) install EXTRAS=dev,train,view
	$(BIN)/nightbridge bench
