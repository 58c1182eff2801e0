# Every command a person or CI runs. `make help` lists them; ARGS passes options on: make predict ARGS="cat.jpg".
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BENCH_VENV := $(VENV)-bench
BIN := $(VENV)/bin
DARKROOM := $(BIN)/darkroom
# The one of the machine only where it is this version; `make lock-uv UV_VERSION=...` takes another.
UV_VERSION := $(shell sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements/uv.txt)
export UV := $(if $(filter $(UV_VERSION),$(word 2,$(shell uv --version 2>/dev/null))),$(shell command -v uv),.uv/bin/uv)
# What the images are built on. A digest pins it: make images PYTHON_IMAGE=python@sha256:...
PYTHON_IMAGE ?= python:3.11-slim-bookworm
SBOM := $(UV) tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --output-reproducible --output-format JSON
CODE := flows model_code serving infra tests benchmarks
ARGS ?=
TEST_PROCESSES ?= 2
export DARKROOM_TAG ?= latest
# Half of a command's time would go into compiling what it imports, each time again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup data train-all report quickstart release serve ui predict images sbom up down watch logs backup restore \
	test test-all docs check format bench bench-train bench-serve bench-scale bench-variants gpu-proof doctor lock lock-uv clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Install everything into .venv, from the hash-locked requirements

$(VENV)/.installed: requirements/dev.txt pyproject.toml | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@echo "installing the locked requirements into $(VENV) and compiling them (about 7 GB on disk)"
	@while sleep 3 > /dev/null 2>&1; do printf .; done & trap "kill $$! 2> /dev/null || :; echo" EXIT; \
		$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements/dev.txt && \
		$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

# Without this version of uv on the machine, pip brings it into a folder of its own, checked by its hash.
.uv/bin/uv: requirements/uv.txt
	@$(PYTHON) -m venv --clear .uv
	@.uv/bin/pip install --quiet --require-hashes --only-binary :all: --requirement requirements/uv.txt

data: setup ## Fetch and pack CIFAR-10 (ARGS="--from PATH" for files that are there already)
	$(DARKROOM) data add cifar10 $(or $(ARGS),--download)

train-all: setup ## The whole study: images, every recipe, champions, report (ARGS="--profile smoke" for minutes)
	$(DARKROOM) train-all --release $(ARGS)

quickstart: setup ## The whole path in minutes: drawn images, training, release, service, prediction
	$(DARKROOM) quickstart $(ARGS)

report: setup ## Published figures beside ours, verdicts, curves: .darkroom/report/report.html
	$(DARKROOM) report $(ARGS)

release: setup ## Make a recipe's best run the champion (ARGS="RECIPE --as cifar10")
	$(DARKROOM) release $(or $(ARGS),resnet18_cifar10_strong --as cifar10)

serve: setup ## Answer predictions at http://127.0.0.1:3000
	$(DARKROOM) serve $(ARGS)

predict: setup ## Ask the running service (ARGS="image.jpg")
	@test -n "$(ARGS)" || { echo 'give images: make predict ARGS="cat.jpg"' >&2; exit 2; }
	$(DARKROOM) predict $(ARGS)

ui: setup ## Start MLflow's pages and print the address of all runs, to compare them
	$(DARKROOM) ui $(ARGS)

images: sbom ## Build the containers' images: train, serve, serve-cpu
	@for target in train serve-cpu $(if $(GPU),serve); do \
		DOCKER_BUILDKIT=1 docker build --progress=plain --target $$target --tag darkroom-$$target:$(DARKROOM_TAG) \
			--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) --build-arg GIT_SHA=$$(git describe --always --dirty --abbrev=40 --exclude '*') . ; \
	done

sbom: | $(UV) ## Write what each image installs from PyPI as CycloneDX into dist/sbom
	@mkdir -p dist/sbom
	@$(SBOM) --output-file dist/sbom/train.cdx.json requirements/train.txt
	@$(SBOM) --output-file dist/sbom/serve-cpu.cdx.json requirements/serve.txt
	@cat requirements/serve.txt requirements/cuda.txt | $(SBOM) --output-file dist/sbom/serve.cdx.json -
	@ls dist/sbom/*.cdx.json

up: images ## Start the whole stack in containers and print its addresses (GPU=1 with NVIDIA's toolkit)
	@$(PYTHON) infra/stack.py $(if $(GPU),--gpu) up

down: ## Stop the stack; its volumes stay
	@$(PYTHON) infra/stack.py down

watch: ## Start containers again that somebody killed by hand
	@$(PYTHON) infra/stack.py watch

logs: ## Follow the stack's logs (ARGS="worker" for one of them)
	@$(PYTHON) infra/stack.py logs $(ARGS)

backup: ## Write the stack's databases and files to TO=FOLDER
	@$(PYTHON) infra/stack.py backup "$(or $(TO),$(error give a new folder: make backup TO=FOLDER))"

restore: images ## Bring FROM=FOLDER back into an empty stack, and start it
	@$(PYTHON) infra/stack.py $(if $(GPU),--gpu) restore "$(or $(FROM),$(error give a backup: make restore FROM=FOLDER))"

# Files in TEST_PROCESSES processes, one thread each: more on a busy core are slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: setup ## Run the tests of every package that take seconds, about five minutes
	$(PYTEST) -m "not slow" $(or $(ARGS),tests/unit tests/contract)

test-all: setup ## Run every test: trainings, kills, schedules, stored homes, Chromium too
	$(PYTEST) --durations 25 $(ARGS)

docs: setup ## Build the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

check: setup ## Formatting, lint, types, import contracts
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code and fix what can be fixed
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: setup ## Measure packing, training and prediction on this machine
	$(BIN)/python -m benchmarks.pipeline $(ARGS)

bench-train: $(BENCH_VENV)/.installed ## Measure training beside the articles' loops, torchvision, kornia and lightly
	$(BENCH_VENV)/bin/python -m benchmarks.training $(ARGS)

# Ours runs as it is locked, without what the others bring.
bench-serve: $(BENCH_VENV)/.installed ## Measure the service beside FastAPI, LitServe, MLflow: ARGS="--home HOME --image FILE"
	$(BENCH_VENV)/bin/python -m benchmarks.serving --python $(BIN)/python $(ARGS)

gpu-proof: setup ## Prove and measure the GPU path, stage by stage (ARGS="--dry-run", ARGS="study --page")
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-scale: setup ## Measure how costs grow with images, recipes, runs, trials and requests
	$(BIN)/python -m benchmarks.scale $(ARGS)

bench-variants: setup ## Measure int8 beside fp32 on this machine's CPU
	$(BIN)/python -m benchmarks.variants $(ARGS)

# A layer over $(VENV), which stays as it is locked: only what it lacks is installed.
$(BENCH_VENV)/.installed: requirements/bench.txt $(VENV)/.installed | $(UV)
	@rm -rf $(BENCH_VENV)
	@$(UV) venv --quiet --python $(BIN)/python $(BENCH_VENV)
	@$(BIN)/python -c '$(PRINT_PACKAGES)' > $$($(BENCH_VENV)/bin/python -c '$(PRINT_PACKAGES)')/darkroom.pth
	@$(UV) pip install --quiet --require-hashes --no-deps --no-build-isolation --python $(BENCH_VENV)/bin/python \
		--requirement requirements/bench.txt
	@touch $@

PRINT_PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))

doctor: setup ## Say what this machine can do, and what is missing
	$(DARKROOM) doctor

lock: | $(UV) ## Resolve the requirements anew and write the hash-locked files
	$(LOCK) --upgrade --extra train --extra sweep --extra ray --extra stack --extra serve --extra cuda --extra dev --output-file requirements/dev.txt
	$(LOCK) --extra train --extra stack --constraint requirements/dev.txt --output-file requirements/train.txt
	$(LOCK) --extra serve --constraint requirements/dev.txt --output-file requirements/serve.txt
	$(LOCK) --extra cuda --constraint requirements/dev.txt $(call SKIP_HELD,serve) --output-file requirements/cuda.txt
	$(LOCK) --extra build --constraint requirements/dev.txt --output-file requirements/build.txt
	$(LOCK) --extra bench --constraint requirements/dev.txt $(call SKIP_HELD,dev) --output-file requirements/bench.txt

lock-uv: ## Pin uv itself, by version and hash (UV_VERSION=...)
	@echo "uv==$(UV_VERSION)" | $(or $(shell command -v uv),.uv/bin/uv) pip compile - --quiet --universal \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --output-file requirements/uv.txt

LOCK := $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
# Read when the line runs: what that file holds is left out.
SKIP_HELD = $$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' requirements/$(1).txt)

clean: ## Remove the virtual environments and caches; data, runs and models in .darkroom stay
	rm -rf $(VENV) $(BENCH_VENV) .uv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
