# Everything starts from Python 3.11+, pip and make; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STOCK := benchmarks/.venv
STOCK_READY := $(STOCK)/.ready

.PHONY: demo test truth-full faults faults-full bench bench-quick openapi check fix clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(STOCK_READY): benchmarks/stock-constraints.txt
	$(PYTHON) -m venv $(STOCK)
	$(STOCK)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/stock-constraints.txt
	touch $(STOCK_READY)

demo: $(READY)  ## start the service, run a step scan and a flyscan, show what came out
	$(BIN)/python examples/demo.py

# Three at a time, also on two processors: tests wait for the processes that they start.
test: $(READY)  ## all tests, with the same random choices each time
	FLYSTORE_SEED=$${FLYSTORE_SEED-1} $(BIN)/python -m pytest -n 3 --dist loadfile --hypothesis-profile same-each-time

truth-full: $(READY)  ## 5,000 generated runs with known truth; about twenty minutes
	FLYSTORE_EXAMPLES=5000 $(BIN)/python -m pytest -n 2 --dist load --timeout 5400 tests/system/test_truth.py

faults: $(READY)  ## kill, cut, fill and damage: the quick tier, under ten minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'faults_long or not faults_long' tests/faults

faults-full: $(READY)  ## the same with the full numbers; about an hour and a half
	FLYSTORE_FAULTS=full $(BIN)/python -m pytest -n 2 --dist load -m 'faults_long or not faults_long' --timeout 5400 tests/faults

bench: $(READY) $(STOCK_READY)  ## beside stock and the machine's limits, into docs/explanations/performance.md; half an hour
	mkdir -p build
	$(BIN)/python -m benchmarks --write-docs --json build/benchmarks.json $(BENCH)

bench-quick: $(READY) $(STOCK_READY)  ## the same with fewer rounds and smaller sizes, only shown; under two minutes
	mkdir -p build
	$(BIN)/python -m benchmarks --quick --json build/benchmarks-quick.json $(BENCH)

check: $(READY)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

openapi: $(READY)  ## write docs/reference/openapi.json again, after a change of routes
	$(BIN)/python -m flystore.http.openapi > $(VENV)/openapi.json
	mv $(VENV)/openapi.json docs/reference/openapi.json

fix: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(STOCK)
