# One entry for every development task; CI uses the same. `make drill` and `make test` do all their set-up.
SHELL := /bin/bash
PY := $(shell deploy/scripts/setup --print-python)
DRILL ?= kill-primary
RUNS ?= 1
LAB ?= lab

.PHONY: help drill test check unit lab-tests drills bench setup setup-dev lab-setup down clean

help:
	@echo "make drill [DRILL=NAME] [RUNS=N]   boot the lab and run a failover drill (default: kill-primary)"
	@echo "make test     everything that CI runs: make check, then the tests and all drills on real kernels"
	@echo "make check    lint, types, layers and unit tests, in seconds; needs no root"
	@echo "make bench    client stalls, CPU and memory, medians over several runs"
	@echo "make down     take the lab down; leaves nothing behind"

setup-dev:
	@deploy/scripts/setup dev

setup:
	@deploy/scripts/setup lab

drill: setup
	@$(PY) -m hwlab --lab $(LAB) drill $(DRILL) --runs $(RUNS)

bench: setup
	@$(PY) -m hwlab --lab $(LAB) bench

check: setup-dev
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(dir $(PY))lint-imports --no-cache
	$(PY) -m pytest -m "not lab"

lab-tests: setup
	$(PY) -m pytest -m lab -v --durations=0

test: setup check lab-tests

down:
	@$(PY) -m hwlab --lab $(LAB) down

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache
