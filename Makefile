# Two commands are enough to know: `make serve` and `make test`. Each installs what it
# needs first; deploy/environment.sh and deploy/services.sh say how.

ARGS ?=
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash

BIN := .venv/bin
# Interpreters, pip and pytest of these targets must not look into other environments.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH

.PHONY: help
help: ## show this list
	@echo 'Headrace, a streaming server for local language models.'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  ARGS="..."         passed on: make serve ARGS="--port 9000", make test ARGS="-k sse"'
	@echo '  PYTHON=python3.12  interpreter for a new environment (3.11 or newer)'
	@echo '  CMAKE_ARGS=...     added to the build of llama.cpp: make serve CMAKE_ARGS=-DGGML_CUDA=on'

# `exec` gives Ctrl-C and SIGTERM to the server itself, with no shell in between.
.PHONY: serve
serve: ## install what is missing, then serve the default model on port 8080
	@deploy/environment.sh runtime
	@exec $(BIN)/headrace serve $(ARGS)

.PHONY: install
install: ## what serve installs, without serving
	@deploy/environment.sh runtime

.PHONY: test
test: ## run all tests, with three models, both OpenAI SDKs, Redis and nginx
	@deploy/services.sh redis-server nginx
	@deploy/environment.sh dev
	@deploy/environment.sh openai2
	@$(BIN)/headrace models pull default
	@$(BIN)/headrace models pull all-minilm-l6-v2
	@$(BIN)/headrace models pull gemma3-270m
	@HEADRACE_TEST_OPENAI2_PYTHON="$(CURDIR)/.venv-openai2/bin/python" exec $(BIN)/python -m pytest $(ARGS)

.PHONY: check
check: ## lint, format check, types, import contracts, Dockerfile, shell scripts
	@deploy/environment.sh dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint Dockerfile.gpu
	$(BIN)/shellcheck deploy/*.sh deploy/docker/*.sh .ci/run

BENCH = compare --a headrace --b llama-server --workload short --concurrency 1,16 --out bench-results

.PHONY: bench
bench: ## build llama-server and compare with it; or make bench ARGS="compare --help"
	@deploy/environment.sh runtime
	$(if $(ARGS),,@deploy/environment.sh build)
	$(if $(ARGS),,@PATH="$(CURDIR)/.venv-build/bin:$$PATH" $(BIN)/python -m benchmarks.build_peer)
	@exec $(BIN)/python -m benchmarks $(or $(ARGS),$(BENCH))

.PHONY: faults
faults: ## break things and see what is kept, an hour; ARGS="--quick" for less
	@deploy/services.sh redis-server
	@deploy/environment.sh runtime
	@$(BIN)/headrace models pull default
	@exec $(BIN)/python -m benchmarks.faults $(ARGS)

.PHONY: lock
lock: ## write the lock files anew; UPGRADE=1 takes the newest versions
	@deploy/environment.sh lock
	@deploy/lock.sh

.PHONY: clean
clean: ## remove environments, caches and builds; models stay
	rm -rf .venv .venv-openai2 .venv-lock .venv-build .venv-state build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
