# Two commands do everything: `make reproduce` and `make test`.
# An active virtual or conda environment is used as it is; otherwise .venv is made here, once.
#   PYTHON       interpreter for a new .venv, 3.11 or newer        make test PYTHON=python3.12
#   TORCH_INDEX  index to take torch from, for a CPU-only build    make test TORCH_INDEX=…  (pytorch.org, "CPU")
#   WORKERS      test processes, one thread each                   make test WORKERS=8
#   ARGS         passed on to the command                          make reproduce ARGS="--preset smoke --retrain"

PYTHON      ?= python3
TORCH_INDEX ?=
WORKERS     ?= 2
ARGS        ?=

ENV := $(or $(VIRTUAL_ENV),$(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX)),$(CURDIR)/.venv)
PY  := $(ENV)/bin/python
# What was installed, and for which checkout: two checkouts may take turns with one environment.
STAMP := $(ENV)/.seedx-lite-$(firstword $(shell pwd | cksum))
PINNED_TORCH := $(shell grep '^torch==' constraints.txt)
NEEDS := pyproject.toml constraints.txt | $(PY)

.PHONY: help reproduce test lint lab doctor clean
.DEFAULT_GOAL := help

help:
	@echo "make reproduce   run every notebook, write runs/<preset>/report.html"
	@echo "make test        all tests: units, golden fixtures, notebooks"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make doctor      what is missing or slow on this machine"
	@echo "make lint        ruff on code and notebooks"
	@echo "make clean       remove caches; results in runs/ and .venv stay"

reproduce: $(STAMP)-run
	$(PY) -m seedx_lite reproduce $(ARGS)

test: $(STAMP)-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadscope --nbval --nbval-current-env \
		--nbval-cell-timeout 900 $(ARGS)

lab: $(STAMP)-run
	$(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks $(ARGS)

doctor: $(STAMP)-run
	$(PY) -m seedx_lite doctor $(ARGS)

lint: $(STAMP)-test
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python %d.%d is too old, 3.11 is needed: make PYTHON=python3.11 …" % sys.version_info[:2])'
	$(PYTHON) -m venv "$(ENV)"

$(STAMP)-run: $(NEEDS)
	$(if $(TORCH_INDEX),$(PY) -m pip install "$(PINNED_TORCH)" --index-url "$(TORCH_INDEX)")
	$(PY) -m pip install -e . -c constraints.txt
	@touch "$@"

$(STAMP)-test: $(NEEDS)
	$(if $(TORCH_INDEX),$(PY) -m pip install "$(PINNED_TORCH)" --index-url "$(TORCH_INDEX)")
	$(PY) -m pip install -e ".[test]" -c constraints.txt
	@touch "$@" "$(STAMP)-run"

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
