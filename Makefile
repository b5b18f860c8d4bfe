# The commands that a contributor and .ci/run use. Each is written once: README has the line that sets up and tests, and it is read
# from there; the rest is here.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help readme setup test test-fast lint types docs bench coverage coverage-report

# Where `docs` writes the site, and where `coverage` keeps what it measures. Absolute: tests start processes in other folders.
SITE ?= build/site
COVERAGE_FILE ?= $(CURDIR)/.coverage
export COVERAGE_FILE

# $(call command,0) is the line in a block of README that sets up and tests. Part 1 of it sets up, part 2 tests.
parts = $(shell awk -F ' && ' '/^```/ { fenced = !fenced } fenced && /^pip install -c constraints.txt -r requirements-dev.txt/ { print $$$(1) }' README.md)
command = $(or $(call parts,$(1)),$(error no block of README.md has a line that installs requirements-dev.txt and then tests))

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

readme: ## print README's command: it sets up and tests
	@echo '$(call command,0)'

setup: ## install gotr1, its plugins and the development tools, editable
	$(call command,1)

test: ## run the tests
	$(call command,2)

# Rewards, advantages, sampling, updates and the algorithms: no runs, no command line, no documentation.
FAST = advantages chain config gaussian judges_together packaging plugins reliability reward rollout sampling update
test-fast: ## run the tests of the core idea: a minute
	$(call command,2) plugins/gotr1-rl/tests $(FAST:%=tests/test_%.py)

lint: ## check style and format
	ruff check .
	ruff format --check .

types: ## check types
	mypy

docs: ## build the documentation; a warning is an error
	mkdocs build --strict --quiet --site-dir '$(SITE)'

bench: ## train three seeds and print README's table: 18 to 40 minutes
	python benchmarks/learning.py

# .ci/run sets the same variable while README's command runs. It is coverage's own: every Python process measures itself.
coverage: ## run the tests and see how much of the core they run
	coverage erase
	COVERAGE_PROCESS_START='$(CURDIR)/pyproject.toml' $(MAKE) test
	$(MAKE) coverage-report

coverage-report: ## fail if the tests ran less than 95 % of the core
	coverage combine --quiet
	coverage report --fail-under=95
