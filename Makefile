# A line of shell each. `make demo` and `make test` do all their set-up themselves.
SHELL := bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
export YOUTU_MODELS ?= $(HOME)/.local/share/youtu/models
MODEL := qwen2.5-coder-0.5b
PYTHON310 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python) $(shell command -v python3.10))

.PHONY: demo test check test-310 models bench fuzz clean

demo: $(VENV)/ready
	scripts/demo

test: check test-310 models
	$(BIN)/python -m pytest tests

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What ships must run on Python 3.10 (JetPack 6): byte-compiled there, the torch-free tests run.
test-310: check
	scripts/test-310 "$(PYTHON310)"

models: $(YOUTU_MODELS)/$(MODEL)/youtu.json $(YOUTU_MODELS)/$(MODEL)-fp32/youtu.json

$(YOUTU_MODELS)/$(MODEL)/youtu.json: | $(VENV)/ready
	$(BIN)/youtu pull $(MODEL) --keep-download

$(YOUTU_MODELS)/$(MODEL)-fp32/youtu.json: | $(YOUTU_MODELS)/$(MODEL)/youtu.json
	scripts/fp32-model $(MODEL)

bench: $(VENV)/ready
	$(BIN)/python -m youtu_llm.tools.bench.kernels

fuzz: $(VENV)/ready
	$(BIN)/python -m youtu_llm.tools.evals.punctuation fuzz

# torch first and by itself: any other release would pull gigabytes of CUDA where none is needed.
$(VENV)/ready: pyproject.toml $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable '.[engine,models,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist
