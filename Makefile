# `make demo` sets up and runs the main job; `make test` sets up and passes the tests. Nothing else is needed
# but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Tests and the loop start some hundred Python processes: without bytecode each compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help env demo test test-long check format lock clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

env: $(READY)  ## the environment, from the pinned list

# --no-deps: the lock names every package, so nothing is resolved at install time.
$(READY): infra/deploy/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r infra/deploy/requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: env  ## generate a tiny log, run the whole loop over it, show what came out
	$(BIN)/ouzel demo

test: env  ## the test suite, under 6 minutes on 2 cores
	OUZEL_KAFKA_REQUIRED=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "not slow"

test-long: env  ## the longer fault and soak runs; results are recorded in infra/docs
	OUZEL_KAFKA_REQUIRED=1 $(BIN)/pytest -q -m slow

check: env  ## lint, format, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: env  ## pin what pyproject.toml allows, without naming where it came from
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links --extra dev --extra faust --extra bench \
		pyproject.toml --output-file infra/deploy/requirements.lock

clean:  ## remove what was built
	rm -rf $(VENV) build runs .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

.PHONY: bench-loop
bench-loop: env  ## the loop over a generated week, and Vowpal Wabbit beside it; SEEDS="1 2 3"
	@mkdir -p build/bench
	$(BIN)/python -m tests.bench.loop --seeds $(or $(SEEDS),1)

# TorchRec lies beside the environment, not in it: nothing but this benchmark needs it.
build/bench/torchrec/.ready: infra/deploy/bench-table.lock $(READY)
	rm -rf $(@D)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(@D) -r $<
	@touch $@

.PHONY: bench-table
bench-table: env build/bench/torchrec/.ready  ## the table beside torch, TorchRec and a dict; ARGS="--keys 1000000 --case lookup"
	$(BIN)/python -m tests.bench.table $(ARGS)

.PHONY: bench-kafka
bench-kafka: env  ## Kafka clients and the joiner over a real broker: events/s and processor time an event
	$(BIN)/python -m tests.bench.kafka_clients
	$(BIN)/python -m tests.bench.join_engines

.PHONY: soak-table
soak-table: env  ## 100 M operations on embedding tables of every policy, invariants checked at the end
	$(BIN)/python -m tests.bench.soak_table
