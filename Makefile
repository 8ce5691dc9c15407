# Every target works from a fresh clone: it needs Debian's python3.11, make and the package registries.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup packages demo test check fix sweep attacks chaos fleet fuzz bench bench-delta bench-server docs pictures lock

help: ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

setup: ## Make .venv from the hash-pinned locks (repeatable).
	@scripts/setup.sh

packages: ## Install the Debian packages that tests and demo use.
	@scripts/debian.sh

demo: setup ## Play the main job in this terminal: sign, publish, install, prove healthy or revert.
	@scripts/debian.sh e2fsprogs
	@$(BIN)/firmament demo

test: setup packages ## Run the whole test suite, on every core.
	@$(BIN)/pytest -n auto

check: setup ## Lint, format and types.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

fix: setup ## Mend what the linter and the formatter can.
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

sweep: setup ## Cut the power at every storage operation of a whole update.
	@$(BIN)/python -m firmament.cli.sweep

attacks: setup packages ## Play every attack story against real processes over HTTPS.
	@$(BIN)/python tests/attack/run.py

fleet: setup ## A hundred thousand virtual devices meet a bad build (it stops, goes back, leaves evidence), then a good one.
	@$(BIN)/python scripts/fleet.py

chaos: setup packages ## Kill servers, their leader and PostgreSQL, and fill the disk, in a rollout; nothing acknowledged may be lost.
	@$(BIN)/python tests/chaos/run.py

fuzz: setup ## Fuzz the decoders for a bounded time (FUZZ_S seconds, default 60).
	@$(BIN)/python scripts/fuzz.py

bench: bench-server ## Measure, as ratios against something run side by side.

bench-server: setup ## The server's bars, each against its baseline in the same run, into docs/performance/server.md (about ten minutes).
	@scripts/debian.sh iproute2 mosquitto nginx postgresql wrk
	@$(BIN)/python bench/server/run.py --report docs/performance/server.md

DELTA_CORPUS ?= /var/tmp/firmament-delta-corpus
bench-delta: setup ## Rebuild the delta corpus from public packages and measure every method on it (an hour; 6 GB in DELTA_CORPUS).
	@scripts/debian.sh bsdiff casync e2fsprogs gcc-arm-none-eabi libnewlib-arm-none-eabi xdelta3 xz-utils zstd
	@bench/delta/fetch.sh $(DELTA_CORPUS)
	@bench/delta/corpus.sh $(DELTA_CORPUS) all
	@test -x $(DELTA_CORPUS)/venv/bin/python || python3 -m venv $(DELTA_CORPUS)/venv
	@$(DELTA_CORPUS)/venv/bin/pip --quiet --disable-pip-version-check install -r bench/delta/requirements.txt --editable .
	@$(DELTA_CORPUS)/venv/bin/python bench/delta/run.py $(DELTA_CORPUS) --report docs/performance/delta.md
	@$(DELTA_CORPUS)/venv/bin/python bench/delta/inplace.py $(DELTA_CORPUS) --report docs/performance/inplace.md

docs: setup ## Write the generated reference pages.
	@$(BIN)/python scripts/docs.py

pictures: setup packages ## Make the pictures of the documentation from real runs; look at each one.
	@$(BIN)/python scripts/pictures.py
	@$(BIN)/python scripts/console_pictures.py

lock: setup ## Write the lock files after a change of dependencies.
	@scripts/lock.sh
