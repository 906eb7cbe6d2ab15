# One entry for every development task; CI uses the same. `make drill` and `make test` do all their set-up.
SHELL := /bin/bash
PY := $(shell deploy/scripts/setup --print-python)
DRILL ?= kill-primary
SEEDS ?= 1000
HOURS ?= 1
RUNS ?= 1
LAB ?= lab

.PHONY: help drill test check sim soak unit lab-tests lab-tests-long bench bench-fence setup setup-dev lab-setup down clean

help:
	@echo "make drill [DRILL=NAME] [RUNS=N]   boot the lab and run a failover drill (default: kill-primary)"
	@echo "make test     everything that CI runs: make check, make sim, then tests and drills on real kernels"
	@echo "make lab-tests-long   more on real kernels: corosync, changes while running, flap, starved, stop-node, storage"
	@echo "make check    lint, types, layers and unit tests, in seconds; needs no root"
	@echo "make sim [SEEDS=N]     simulate N seeds of misfortune (default 1000); part of make test"
	@echo "make soak [HOURS=N]    simulate new seeds for hours"
	@echo "make bench    client stalls, CPU and memory, medians over several runs"
	@echo "make bench-fence   how long fencing 1, 8 and 100 LUNs takes"
	@echo "make down     take the lab down; leaves nothing behind"

setup-dev:
	@deploy/scripts/setup dev

setup:
	@deploy/scripts/setup lab

drill: setup
	@$(PY) -m hwlab --lab $(LAB) drill $(DRILL) --runs $(RUNS)

bench: setup
	@$(PY) -m hwlab --lab $(LAB) bench

bench-fence: setup
	@$(PY) -m hwlab --lab $(LAB) bench-fence

check: setup-dev
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(dir $(PY))lint-imports --no-cache
	$(PY) -m pytest -m "not lab and not sim"

sim: setup-dev
	$(PY) -m pytest -m sim
	$(PY) -m tests.sim --seeds $(SEEDS)

soak: setup-dev
	$(PY) -m tests.sim --soak $(HOURS)

lab-tests: setup
	$(PY) -m pytest -m "lab and not long" -v --durations=0

lab-tests-long: setup
	$(PY) -m pytest -m "lab and long" -v --durations=0

test: setup check sim lab-tests

down:
	@$(PY) -m hwlab --lab $(LAB) down

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache
