PYTHON ?= python3
TORCH ?=
VENV := .venv
PY := $(VENV)/bin/python

# Spinning OpenMP threads collapse as soon as anything else wants a core.
export OMP_WAIT_POLICY := passive

# What runs the default model, by the kernels for the CPU unless they are switched off.
WITHOUT_KERNELS := tests/test_real_model.py tests/test_weights.py tests/test_edges.py

.PHONY: help run test test-serve test-site lab browse bench gpu site weights clean
.DEFAULT_GOAL := help

help:
	@echo "make run      set up what is missing, then compare naive and stateful turns (notebook 00) into out/"
	@echo "make test     set up what is missing, then lint, types, tests and notebooks"
	@echo "make test-serve  set up what is missing, Ray included, then test the server on several replicas"
	@echo "make lab      set up what is missing, then open working copies of the course, in work/, in JupyterLab"
	@echo "make browse   set up what is missing, then run every notebook in a real browser; pictures into out/browse/"
	@echo "make site     set up what is missing, Sphinx included, then write the course as web pages into out/site/"
	@echo "make test-site  set up what is missing, then test the site, in a browser where there is one"
	@echo "make bench    set up what is missing, then measure the headline anew into data/results/ (hours)"
	@echo "make gpu      set up what is missing, then test and measure all that runs on a GPU, in nine minutes; into out/gpu/"
	@echo "make weights  the environment and the default model, nothing else"
	@echo "make clean    remove the environment, out/ and caches; the weights stay in data/weights"
	@echo "Another Python (3.11 or newer): make run PYTHON=python3.12"
	@echo "Torch from another index than pip's: make run TORCH='--index-url URL'"

run: weights
	@echo "== main job: one agent, naive and stateful"
	@$(PY) -m minstate.lab.main

test: weights
	@echo "== lint"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@echo "== types"
	@$(PY) -m ty check
	@echo "== tests"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup tests
	@echo "== tests where there is no compiler, and torch computes on the CPU"
	@MINSTATE_COMPILER=none OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup $(WITHOUT_KERNELS)
	@echo "== notebooks, with their exercises solved"
	@$(PY) -m minstate.lab.notebook.solutions
	@$(PY) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=120 out/solved/*.ipynb

test-serve: weights $(VENV)/.ray
	@echo "== the server, alone and as replicas of Ray Serve"
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/serve

lab: weights
	@echo "== JupyterLab on work/, copies of the course that are yours (stop it with Ctrl-C)"
	@$(PY) -m minstate.lab.notebook.student

browse: weights $(VENV)/.browse
	@echo "== every notebook in JupyterLab, in a browser"
	@$(PY) -m minstate.lab.notebook.browse

bench: weights
	@echo "== what each mechanism is worth, and other engines beside minstate: hours, on a machine that does nothing else;"
	@echo "   started again, it goes on with the repeat that it had not finished"
	@GOMP_SPINCOUNT=10000 $(PY) -m minstate.lab.bench peers workload=agentic dtype=bfloat16 repeats=3
	@GOMP_SPINCOUNT=10000 $(PY) -m minstate.lab.bench peers workload=coding dtype=bfloat16 repeats=3
	@GOMP_SPINCOUNT=10000 $(PY) -m minstate.lab.bench ablation dtype=bfloat16 repeats=3
	@GOMP_SPINCOUNT=10000 $(PY) -m minstate.lab.bench ablation dtype=float32 only=ladder
	@GOMP_SPINCOUNT=10000 $(PY) -m minstate.lab.bench peers workload=agentic dtype=float32 repeats=1
	@GOMP_SPINCOUNT=10000 $(PY) -m minstate.lab.bench peers workload=coding dtype=float32 repeats=1

gpu: weights
	@echo "== all that runs on a GPU: native tests, the memory checker, kernels, whole models, traces"
	@$(PY) -m minstate.lab.bench.on_gpu

site: $(VENV)/.site
	@echo "== the course as web pages"
	@$(PY) -m minstate.lab.site

test-site: $(VENV)/.site
	@echo "== the site: the pre-pass, Sphinx, links"
	@$(PY) -m pytest tests/lab/site

weights: $(VENV)/.installed
	@echo "== weights"
	@$(PY) -m minstate.lab.fetch

# The stamp is written last: a set-up that was interrupted, or is out of date, is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "minstate needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make run PYTHON=python3.12"; exit 1; }
	@echo "== environment in $(VENV) (the first time takes some minutes)"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@test -z "$(TORCH)" || $(PY) -m pip install --disable-pip-version-check -c constraints.txt $(TORCH) torch
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[lab,serve,test]'
	@touch $@

$(VENV)/.browse: $(VENV)/.installed
	@echo "== what drives a browser"
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[browse]'
	@touch $@

$(VENV)/.ray: $(VENV)/.installed
	@echo "== Ray Serve"
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[ray]'
	@touch $@

$(VENV)/.site: $(VENV)/.installed
	@echo "== Sphinx"
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[site]'
	@touch $@

clean:
	@echo "== removing $(VENV), out/ and caches"
	@rm -rf $(VENV) out build *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
