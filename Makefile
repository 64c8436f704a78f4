# Every target sets up .venv first (toolchain/install.sh); a second call installs nothing again.
.DEFAULT_GOAL := help
.PHONY: help install demo docs docs-serve test test-all test-nightly cluster faults lint format clean
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
PYTHON_IN_VENV := .venv/bin/python
# Threads that wait sleep. Spinning, as is libgomp's way, gains 7 % on cores that are our own and costs a factor of 3 to 8 beside neighbours.
export OMP_WAIT_POLICY ?= PASSIVE
# Compiled modules are kept, whatever the environment says: pytest rewrites the tests' asserts in ten seconds otherwise, at each start.
export PYTHONDONTWRITEBYTECODE :=

help:
	@echo "make demo      the main job on the embedded sample; ARGS=\"--data my.beton\" adds options"
	@echo "make test      the tests, in minutes; ARGS=\"-k jigsaw\" adds options"
	@echo "make test-all  the tests that take longer"
	@echo "make test-nightly  those that take longest, which CI runs each night"
	@echo "make cluster   jobs of Slurm on two nodes that this machine plays, some minutes; installs Slurm by apt"
	@echo "make faults    faults by the thousand, hours in all; ARGS=\"--only betons --betons 200\" takes some"
	@echo "make lint      ruff and mypy over everything"
	@echo "make docs      the documentation, into build/docs; make docs-serve shows it on http://localhost:8000"
	@echo "make format    ruff rewrites what it can"
	@echo "make clean     removes what was built, .venv too; runs/ stays"

install:
	@bash toolchain/install.sh

demo: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} .venv/bin/torchrun --standalone --nproc-per-node=1 recipes/simclr_r50.py $(ARGS)

# A worker more than there are cores, because ranks and programs that tests start wait for each other. One that is done takes half of what
# another has left.
PYTEST := $(PYTHON_IN_VENV) -m pytest -n $(shell expr $$(nproc) + 1) --dist worksteal

test: install
	$(PYTEST) $(ARGS)

test-all: install
	$(PYTEST) -m "slow and not nightly" $(ARGS)

test-nightly: install
	$(PYTEST) -m nightly $(ARGS)

# Its files are in build/slurm; SLURM_CONF=build/slurm/slurm.conf lets sinfo and others see it.
cluster: install
	bash toolchain/slurm.sh start build/slurm
	trap "bash toolchain/slurm.sh stop build/slurm" EXIT; \
	SLURM_CONF=$(CURDIR)/build/slurm/slurm.conf $(PYTHON_IN_VENV) -m pytest -m cluster tests/cluster $(ARGS)

# The categories, their counts and the options: python -m tests.faults --help
faults: install
	$(PYTHON_IN_VENV) -m tests.faults --out build/faults.json $(ARGS)

lint: install
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m ruff format --check .
	$(PYTHON_IN_VENV) -m mypy

# A warning is an error: a lost link, a page in no list of contents, a docstring that cannot be read.
docs: install
	$(PYTHON_IN_VENV) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

docs-serve: docs
	$(PYTHON_IN_VENV) -m http.server --bind 127.0.0.1 --directory build/docs 8000

format: install
	$(PYTHON_IN_VENV) -m ruff check --fix .
	$(PYTHON_IN_VENV) -m ruff format .

clean:
	rm -rf .venv build dist licenses *.egg-info .pytest_cache .mypy_cache .ruff_cache
