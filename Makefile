# SPDX-License-Identifier: Apache-2.0
# Every target works from a clean clone. PYTHON chooses the interpreter, VENV where its environment lives,
# GROUPED_CUDA=AUTO|ON|OFF whether the CUDA kernels are built.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(shell find ffi cmake -type f) CMakeLists.txt pyproject.toml constraints.txt
PACKAGES := $(shell find jax_grouped torch_grouped -name '*.py')
CXX_SOURCES := $(shell find ffi tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc')
WORKERS ?= auto
# Seconds for the first sitting of the GPU benchmarks and for JAX's own.
BUDGET ?= 300
NATIVE_BUDGET ?= 110
OUT_JSON ?= benchmarks/results/gpu.json
BENCH := PYTHONPATH=.gpu/site:$$PYTHONPATH $(PYTHON) -m benchmarks

.PHONY: demo test test-jax lint format wheel bench-cpu bench-smoke gpu-package gpu-test gpu-test-two gpu-bench clean
.DEFAULT_GOAL := demo

# What is installed is a copy, so it is made anew when any source changes. torch is left out of the environment that
# only tests JAX.
$(VENV)/all: EXTRAS := jax,torch,test,demo,docs
$(VENV)/jax-only: EXTRAS := jax,test
$(VENV)/all $(VENV)/jax-only: $(NATIVE) $(PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt ".[$(EXTRAS)]"
	touch $@

# What these extras name, without a build of ours.
$(VENV)/dev: EXTRAS := dev
$(VENV)/frameworks: EXTRAS := jax torch
$(VENV)/dev $(VENV)/frameworks: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt $$($(BIN)/python -c 'import sys, tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*(needed for name in sys.argv[1:] for needed in extras[name]))' $(EXTRAS))
	touch $@

demo: $(VENV)/all
	$(BIN)/python examples/moe_digits.py

test: $(VENV)/all
	$(BIN)/pytest tests --ignore=tests/gpu -n $(WORKERS)

test-jax: $(VENV)/jax-only
	$(BIN)/pytest tests/jax -n $(WORKERS)

lint: $(VENV)/all $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# A CPU wheel, and where there is nvcc a CUDA wheel; each then works in a bare environment without a compiler.
wheel: $(VENV)/frameworks
	rm -rf dist
	GROUPED_CUDA=OFF $(PIP) wheel --quiet --no-deps --wheel-dir dist --config-settings build-dir=build/wheel-cpu .
	if command -v nvcc >/dev/null || test -x /usr/local/cuda/bin/nvcc; then \
	  GROUPED_CUDA=ON $(PIP) wheel --quiet --no-deps --wheel-dir dist --config-settings build-dir=build/wheel-cuda .; fi
	$(BIN)/python tests/wheel_smoke.py dist/*.whl

.PHONY: docs figures gpu-bench-second gpu-verdict

# The documentation as a site in build/docs; a warning is an error.
docs: $(VENV)/all
	PYTHONPATH=. $(BIN)/python docs/site/make_site.py

# The figures of the documentation, from the committed results.
figures: $(VENV)/all
	$(BIN)/python -m benchmarks plot benchmarks/results/h100.json --out docs/img

bench-cpu: $(VENV)/all
	$(BIN)/python benchmarks/cpu_micro.py

# The benchmark runner where there is no GPU: small shapes, one thread.
bench-smoke: $(VENV)/all
	$(BIN)/python -m benchmarks run --device cpu --quick --fresh --out build/bench.json
	$(BIN)/python -m benchmarks compare build/bench.json

# The wheel and the sanitizer executable for a GPU machine, made where there is a compiler (no GPU is needed).
gpu-package:
	$(PYTHON) tests/gpu/package.py

# On the GPU machine: checks, then writes tests/gpu/record.json. Builds the package first if it is not there.
gpu-test:
	$(PYTHON) tests/gpu/run.py

# On a machine with two GPUs: symmetric memory, FSDP, sharding, several devices; writes tests/gpu/record_two.json.
gpu-test-two:
	$(PYTHON) tests/gpu/run_two.py

# On the GPU machine: the table against whatever peers are installed there. See benchmarks/protocol.md.
# JAX's own operations need most of the memory, so they have a process to themselves and ours. Fails if a result of ours
# was wrong; whether it was fast enough is what gpu-verdict says.
gpu-bench:
	$(PYTHON) tests/gpu/run.py --install-only
	$(BENCH) prebuild --budget 100
	wrong=0; $(BENCH) run --budget $(BUDGET) --out $(OUT_JSON) || wrong=1; \
	  XLA_FLAGS="--xla_gpu_autotune_level=1 $$XLA_FLAGS" $(BENCH) run --peers native --xla-share 0.75 --budget $(NATIVE_BUDGET) --out $(OUT_JSON) || wrong=1; \
	  $(BENCH) compare $(OUT_JSON) --targets kernels,frameworks; exit $$wrong

# Peers that want other libraries beside them, into the same file.
gpu-bench-second:
	$(BENCH) run --peers second --xla-share 0.5 --budget $(NATIVE_BUDGET) --out $(OUT_JSON)

# Fails unless the table meets the project's targets.
gpu-verdict:
	$(BENCH) compare $(OUT_JSON) --targets kernels,frameworks

clean:
	rm -rf build dist .gpu $(VENV)
