# The only commands a newcomer needs. `make demo` and `make test` do their own set-up.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv/bin
RUN ?= digits
# Files of tests that train for real are many small steps: one thread a process is quickest.
export OMP_NUM_THREADS ?= 1

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.ready: pyproject.toml constraints.txt hack/setup.sh
	@hack/setup.sh

.PHONY: setup
setup: .venv/.ready ## virtual environment and tools (done by the others when needed)

.PHONY: demo
demo: .venv/.ready ## train a model on a real control plane on this machine; RUN=digits or RUN=shapes
	@$(VENV)/python -m daybreak_cli.demo --run $(RUN)

.PHONY: test
test: .venv/.ready ## every test but the full fault matrix; under 15 minutes on 2 cores
	@hack/setup.sh --test-tools
	@$(VENV)/pytest -m "not e2e" -n 2 --dist loadfile $(ARGS)

.PHONY: smoke
smoke: .venv/.ready ## chart, run and dashboard on a cluster: DAYBREAK_E2E_KUBECONFIG, or a development cluster
	@hack/setup.sh --test-tools
	@$(VENV)/pytest tests/e2e/test_smoke.py $(ARGS)

.PHONY: e2e
e2e: .venv/.ready ## the full fault matrix on the control plane; half an hour
	@hack/setup.sh --test-tools
	@$(VENV)/python tests/support/kueue.py >/dev/null
	@$(VENV)/python tests/support/volcano.py >/dev/null
	@$(VENV)/pytest -m e2e $(ARGS)

.PHONY: chaos
chaos: .venv/.ready ## half an hour of random faults on ten runs: make chaos ARGS="--minutes 30 --runs 10 --real 2"
	@PYTHONPATH=tests/cluster:tests/support $(VENV)/python tests/chaos/chaos.py $(ARGS)

.PHONY: lint
lint: .venv/.ready ## ruff, mypy, import-linter
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports

.PHONY: generate
generate: .venv/.ready ## CRD and API reference from the pydantic models
	@$(VENV)/python -m daybreak_operator.api.crd

.PHONY: bench
bench: .venv/.ready ## run one benchmark: make bench NAME=...
	@test -n "$(NAME)" || { echo "make bench NAME=one of: $$(ls -d benchmarks/*.py benchmarks/*/__main__.py | sed -E 's,benchmarks/([^/.]*).*,\1,' | xargs)"; exit 2; }
	@$(VENV)/python $(or $(wildcard benchmarks/$(NAME).py),benchmarks/$(NAME))

.PHONY: images
images: ## build the operator and trainer images with docker or buildah
	@hack/build-images.sh

.PHONY: clean
clean: ## remove what the commands above made, the virtual environment too
	@if [ -x $(VENV)/daybreak ]; then $(VENV)/daybreak down || true; fi
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
