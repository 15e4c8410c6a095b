# make report: everything from nothing to the book.  make test: every check.  Both set up .venv first, once.
PYTHON ?= python3
PROFILE ?= quick
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install report test fault export clean-notebooks lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

install: $(STAMP)  ## create .venv and install the package, once

$(STAMP): settings.ini setup.py pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("imgcls needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

report: $(STAMP)  ## run the quick profile (PROFILE=cpu for another), JOBS=2 runs at a time, and build the book
	$(BIN)/imgcls report --profile $(PROFILE) --jobs $(JOBS)

readme: $(STAMP)  ## write the README's table and figure from the committed records
	$(BIN)/python -c 'from imgcls.report import write_readme; write_readme()'

check-site: $(STAMP)  ## a headless browser over the whole built site (PROFILE=quick)
	$(BIN)/python tests/browser.py
	$(BIN)/python -m tests.check_site site/$(PROFILE)

test: $(STAMP)  ## nbdev-test on every notebook, then pytest, browser tests included
	$(BIN)/python tests/browser.py
	$(BIN)/nbdev-test --n-workers 2
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile

fault: $(STAMP)  ## end the runner, its slots, kernels and warm parent by SIGKILL 30 times (KILLS=30), check that nothing is lost
	$(BIN)/python tests/faults.py $(or $(KILLS),30)

export: $(STAMP)  ## notebooks to imgcls/, then clean them; the repository's address from settings.ini into badges
	$(BIN)/python tests/addresses.py
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

lock: $(STAMP)  ## write requirements.lock from the tested environment: names and versions only
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==' | sed -E 's/\+[a-z0-9.]+$$//' > requirements.lock
