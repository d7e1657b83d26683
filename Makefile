# Each target does its own set-up on a bare machine: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: sweep test slow slurm check format clean

sweep: $(VENV)/ready           ## the main job: LLM Surgeon against its baselines on the embedded model
	$(BIN)/python -m prunelab +exp=surgeon_sweep -m

test: $(VENV)/ready            ## the default tests
	$(BIN)/python -m pytest -n auto --dist worksteal

slow: $(VENV)/ready            ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not network and not slurm"

slurm: $(VENV)/ready          ## the launcher on a real SLURM on this machine (Debian; installs it as root)
	$(BIN)/python -m pytest -m slurm tests/slurm

check: $(VENV)/ready           ## format, lint, types, import layers
	$(BIN)/ruff format --check prunelab tests experiments
	$(BIN)/ruff check prunelab tests experiments
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/ready
	$(BIN)/ruff check --fix prunelab tests experiments
	$(BIN)/ruff format prunelab tests experiments

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
