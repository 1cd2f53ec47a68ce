# Every target does its own set-up (requirements/install); what is done already costs nothing.
#
#   make run      imitate the expert of reacher-easy, with the evaluation server on port 8000
#                 (EXPERIMENT=name, ARGS="--set seed=1", TORCH_INDEX=url: see README.md)
#   make test     all tests but the slow ones, two more at once than there are processors; ARGS goes to pytest
#   make soak     the slow tests: about an hour, three at most
#   make test-compose   the containers: builds them, trains, kills, scales (needs a Docker engine)
#   make check    format, lint, types, layers
#   make format   mend format and lint where that can be done by machine
#   make protos   generate apprentice/rpc/v1 from proto/
#   make lock     solve requirements/*.in anew
#   make sbom     what each image is made of, as CycloneDX bills of materials under build/sbom

EXPERIMENT ?= dac-reacher-easy
ARGS ?=
BIN := .venv/bin
WORKERS := $(shell echo $$(($$(nproc) + 2)))
SOURCES := actor apprentice benchmarks cli evalserver learner replay tests
LOCK := uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--generate-hashes --no-emit-package torch --no-header

export TORCH_INDEX PYTHON SYSTEM_PACKAGES

.PHONY: run test soak test-compose check check-format check-lint check-types check-layers format install \
	install-dev protos lock sbom
.DEFAULT_GOAL := run

run: install
	@$(BIN)/apprentice up $(EXPERIMENT) $(ARGS)

# Bytecode is kept even where the environment says not to, or every worker would rewrite every assertion anew.
test: install-dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not slow and not compose" --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal $(ARGS)

soak: install-dev
	@timeout 3h $(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

test-compose: install-dev
	@$(BIN)/python -m pytest -m compose --timeout 3600 -x tests/compose $(ARGS)

check: check-format check-lint check-types check-layers

check-format: install-dev
	$(BIN)/ruff format --check --quiet $(SOURCES)

check-lint: install-dev
	$(BIN)/ruff check --quiet $(SOURCES)

check-types: install-dev
	$(BIN)/mypy

check-layers: install-dev
	$(BIN)/lint-imports --no-logo

format: install-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

install:
	@requirements/install base

install-dev:
	@requirements/install dev

protos: install-dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" proto/generate

lock:
	cd requirements && $(LOCK) base.in -o base.lock && \
		for part in dev replay actor learner evalserver; do \
			$(LOCK) -c base.lock $$part.in -o $$part.lock || exit 1; done && \
		$(LOCK) installer.in -o installer.lock

sbom: install-dev
	@$(BIN)/python requirements/sbom build/sbom
