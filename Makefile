# make demo   the main job on synthetic brains: no data, account or GPU needed
# make test   the tests that take minutes        make slow   those that take longer
# make check  style, format, types               make clean  forget the environment
PYTHON ?= python3
INSTALL = .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test slow check clean
.DEFAULT_GOAL := demo

demo: .venv/installed
	.venv/bin/somvq sweep psom --trials 4

test: .venv/installed-test
	.venv/bin/python -m pytest --numprocesses 2 --dist worksteal

slow: .venv/installed-test
	.venv/bin/python -m pytest -m slow

check: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "somvq needs Python 3.11 to 3.13, and $(PYTHON) is `$(PYTHON) --version`: make PYTHON=python3.12 demo"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing somvq and what it needs into .venv (torch is large)"
	$(INSTALL) .
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing somvq, what it needs and what its tests need into .venv (torch is large)"
	$(INSTALL) '.[test]'
	touch $@ .venv/installed
