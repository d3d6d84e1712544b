# A line of shell each. `make demo` and `make test` do all their set-up themselves.
SHELL := bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# Where `youtu serve` of this account looks for models (youtu_llm/paths.py).
ifndef YOUTU_MODELS
YOUTU_MODELS := $(shell cd daemon && $(PYTHON) -c 'from youtu_llm import paths; print(paths.models_dir())')
endif
export YOUTU_MODELS
MODEL := qwen2.5-coder-0.5b
PYTHON310 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python) $(shell command -v python3.10))

.PHONY: demo quick check test test-310 test-long test-system test-system-clean fuzz soak models
.PHONY: bench check-autoawq packaging-tools deb deb-arm64 test-arm64 test-arm64-kernels clean

demo: $(VENV)/ready
	scripts/demo

# The tiers of tests: CONTRIBUTING.md.
quick:
	scripts/torch-free "$(PYTHON)" $(VENV)/quick checks tests

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check test-310 models
	$(BIN)/coverage run -m pytest tests -m "not long"
	$(BIN)/coverage report --format=total | xargs printf 'lines covered, without the processes started: %s %%\n'

# What ships must run on Python 3.10 (JetPack 6): byte-compiled there, the torch-free tests run.
test-310: check
ifeq ($(PYTHON310),)
	@echo "no python3.10 on this machine: not checked there (set PYTHON310)"
else
	"$(PYTHON310)" -m compileall -q -f daemon
	scripts/torch-free "$(PYTHON310)" $(VENV)/py310 tests
endif

# PART=0/3: every third file of them, from the first on.
test-long: $(VENV)/ready models packaging-tools
	$(BIN)/python -m pytest tests -m long --durations=0 $(if $(PART),--part $(PART))

models: $(YOUTU_MODELS)/$(MODEL)/youtu.json $(YOUTU_MODELS)/$(MODEL)-fp32/youtu.json

$(YOUTU_MODELS)/$(MODEL)/youtu.json: | $(VENV)/ready
	$(BIN)/youtu pull $(MODEL) --keep-download

$(YOUTU_MODELS)/$(MODEL)-fp32/youtu.json: | $(YOUTU_MODELS)/$(MODEL)/youtu.json
	scripts/fp32-model $(MODEL)

bench: $(VENV)/ready
	$(BIN)/python -m lab.bench.kernels

# What we pack against AutoAWQ's own code, and the other way round; in build/autoawq-venv.
check-autoawq: $(VENV)/ready
	scripts/check-autoawq

# The hypothesis suites at their full counts, then token soups.
fuzz: $(VENV)/ready
	$(BIN)/python -m pytest tests -m hypothesis --hypothesis-profile=full
	$(BIN)/python -m lab.evals.punctuation fuzz

# What docs/RELIABILITY.md reports. SOAK_SHARE=0.1 does a tenth, SOAK_S is the mixed traffic's time.
soak: $(VENV)/ready models
	$(BIN)/python -m pytest tests/soak/soak_*.py

# torch first and by itself: any other release would pull gigabytes of CUDA where none is needed.
$(VENV)/ready: pyproject.toml $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.cu*' -o -name CMakeLists.txt)
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) and what it needs into $(VENV): some minutes"
	$(BIN)/pip install --quiet "$(TORCH)"
	@echo "building the kernels and installing youtu with its test tools: some minutes"
	$(BIN)/pip install --quiet --editable '.[engine,models,test]'
	touch $@

packaging-tools:
	scripts/packaging-tools

deb: $(VENV)/ready packaging-tools
	packaging/build-deb

deb-arm64: $(VENV)/ready
	scripts/packaging-tools arm64
	packaging/build-deb arm64

# The .deb, then its life from install to purge on a real systemd (root); on a minimal Debian.
test-system: $(VENV)/ready models packaging-tools
	$(BIN)/python -m pytest tests/system -v --durations=0

test-system-clean: $(VENV)/ready models
	scripts/packaging-tools clean
	YOUTU_SYSTEM_ROOT=clean $(BIN)/python -m pytest tests/system/test_life.py -v --durations=0

# arm64 under qemu: every kernel against float64, then the package in a Debian of its own.
test-arm64: test-arm64-kernels deb-arm64
	YOUTU_ARM64=1 $(BIN)/python -m pytest tests/system/test_arm64.py -v -rP

test-arm64-kernels:
	scripts/packaging-tools arm64
	cmake -S kernels -B build/arm64-kernels -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  -DCMAKE_EXE_LINKER_FLAGS=-static
	cmake --build build/arm64-kernels --target youtu_check -j
	qemu-aarch64-static -cpu max build/arm64-kernels/cpu/youtu_check neon

clean:
	rm -rf $(VENV) build dist
