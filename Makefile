# make distill: install, then run the main job. make test: install what tests need, check style and test.
PYTHON ?= python3
SHELL := /bin/bash
export UV_SYSTEM_CERTS ?= 1
export UV_COMPILE_BYTECODE ?= 1

UV := .make/uv/bin/uv
ACTIVATE := . .venv/bin/activate

.PHONY: distill install test test-all faults soak fuzz style lint format clean

distill: install
	$(ACTIVATE) && mlflow run . -e distill

# .venv for people, and the environment in which `mlflow run .` works without flags. Both are made by uv from
# the same requirements, so that on one file system they share their files.
install: .venv/.installed
	@$(ACTIVATE) && python scripts/mlflow_environment.py

.venv/.installed: pyproject.toml python_env.yaml $(UV)
	$(UV) venv --seed --quiet --allow-existing --python ">=3.11" .venv
	$(UV) pip install --python .venv/bin/python uv -e .
	@touch $@

.venv/.tests-installed: .venv/.installed
	$(UV) pip install --python .venv/bin/python -e ".[test]"
	@touch $@

$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .make/uv uv
	@touch $@

test: .venv/.tests-installed style
	$(ACTIVATE) && python -m pytest

test-all: .venv/.tests-installed style
	$(ACTIVATE) && python -m pytest -m "slow or not slow"

# Everything that breaks something on purpose; writes docs/reliability.md.
faults: .venv/.tests-installed
	$(ACTIVATE) && python -m pytest -m fault --reliability=docs/reliability.md

# Twenty minutes of small runs and searches while what they need is killed.
soak: .venv/.tests-installed
	$(ACTIVATE) && python -m tests.soak

# Tens of thousands of damaged images, archives and model folders; KD_MLFLOW_FUZZ says how many of each.
fuzz: .venv/.tests-installed
	$(ACTIVATE) && KD_MLFLOW_FUZZ=$${KD_MLFLOW_FUZZ:-20000} python -m pytest tests/fuzz --timeout 0

style: .venv/.tests-installed
	$(ACTIVATE) && ruff check . && ruff format --check . && lint-imports
	$(ACTIVATE) && bandit --quiet --recursive --configfile pyproject.toml kd_mlflow scripts benchmarks docker

# Apart from style, because a new advisory must not turn the tests red.
lint: style
	$(ACTIVATE) && python scripts/audit.py

format: .venv/.tests-installed
	$(ACTIVATE) && ruff check --fix . && ruff format .

clean:
	rm -rf .venv .make build kd_mlflow.egg-info
