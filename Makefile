# The only commands: README names them, CI runs them. Each does all its own set-up.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTS_AT_ONCE ?= 2

.PHONY: help demo test soak soak-ranks check docs format bench-layer bench-service bench-training clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED) ## train on real data, watch it, download and use the checkpoint; stops everything it started
	@$(BIN)/syncbn demo

# Half of the time tests wait, for processes that start, meet and die. A file's tests stay together, for what they share.
test: $(INSTALLED) ## all tests but the soak, two files at a time (TESTS_AT_ONCE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder

soak: $(INSTALLED) ## controllers killed before and after each thing that they do, new examples of every property, then a thousand kills at random under load; an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak
	HYPOTHESIS_PROFILE=default OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" $$(git grep -l hypothesis -- 'tests/**/test_*.py')
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.kills --kills 1000

check: $(INSTALLED) ## lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED) ## the documentation as a site, in build/site; whatever its builder warns about is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(INSTALLED) ## what `check` would complain about, where it can be mended by machine; the types of answers; the synchronous client from the other
	$(BIN)/python -m tests.support.answers
	$(BIN)/python -m tests.support.synchronous
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Memory is kept by the processes: what the kernel takes to clear pages would outweigh the loops of both sides.
bench-layer: $(INSTALLED) ## SyncBatchNorm against local BatchNorm, side by side on two ranks
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.layer

bench-service: $(INSTALLED) ## the API, events, streams and downloads under load, beside a static server, Ray's job API and MLflow
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.service

bench-training: $(INSTALLED) ## a step, a start, a recovery, a checkpoint, beside a plain script and Ray Train
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.training

soak-ranks: $(INSTALLED) ## 200 kills of ranks at random moments; every job must end as if nothing had happened
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.ranks

clean: ## remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

# torch first and alone: asked for by a range among others, pip takes the newest build with gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found: install it, or say where it is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[worker,service,postgres,otel,test,docs]'
	@touch $@
