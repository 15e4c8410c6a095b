# make report: everything from nothing to the book.  make test: every check.  Both set up .venv first, once.
PYTHON ?= python3
PROFILE ?= quick
# what is published: the largest profile that has committed records
PUBLIC := $(if $(wildcard results/full/*/*/s*/record.json),full,cpu)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help docs install report public hooks readme check-site test fault export lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

install: $(STAMP)  ## create .venv and install the package, once

$(STAMP): settings.ini setup.py requirements.lock
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("imgcls needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

report: $(STAMP)  ## run the quick profile (PROFILE=cpu for another), JOBS=2 runs at a time, and build the book
	$(BIN)/imgcls report --profile $(PROFILE) --jobs $(JOBS)

public: $(STAMP)  ## build the book of the committed records, the largest profile there is, into site/public; trains nothing
	$(BIN)/imgcls report --profile $(PUBLIC) --no-run -o site/public

hooks: $(STAMP)  ## install nbdev's git hooks: notebooks are cleaned when Jupyter saves them and merged cell by cell
	$(BIN)/nbdev-install-hooks

readme: $(STAMP)  ## write the README's table and figure from the committed records
	$(BIN)/python -c 'from imgcls.report import write_readme; write_readme()'

check-site: $(STAMP)  ## a headless browser over the whole built site (PROFILE=quick)
	$(BIN)/python tests/browser.py
	$(BIN)/python -m tests.check_site site/$(PROFILE)

test: $(STAMP)  ## nbdev-test on every notebook, then pytest, browser tests included
	$(BIN)/python tests/browser.py
	$(BIN)/nbdev-test --n-workers 2
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder

fault: $(STAMP)  ## end the runner, its slots, kernels and warm parent by SIGKILL 30 times (KILLS=30), check that nothing is lost
	$(BIN)/python tests/faults.py $(or $(KILLS),30)

export: $(STAMP)  ## notebooks to imgcls/, then clean them; the repository's address from settings.ini into badges
	$(BIN)/python tests/addresses.py
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

docs: $(STAMP)  ## the API site from _quarto.yml and the rooms; needs Quarto
	cp _quarto.yml nbs/_quarto.yml
	$(BIN)/nbdev-docs

lock: $(STAMP)  ## write requirements.lock from the tested environment: names and versions only
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==' | sed -E 's/\+[a-z0-9.]+$$//' > requirements.lock
