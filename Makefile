# make distill: install, then run the main job. make test: install what tests need, lint and test.
PYTHON ?= python3
SHELL := /bin/bash
export UV_SYSTEM_CERTS ?= 1
export UV_COMPILE_BYTECODE ?= 1

UV := .make/uv/bin/uv
ACTIVATE := . .venv/bin/activate

.PHONY: distill install test test-all faults soak style lint format clean

distill: install
	$(ACTIVATE) && mlflow run . -e distill

# .venv for people, and the environment in which `mlflow run .` works without flags. Both are made by uv from
# the same requirements, so that on one file system they share their files.
install: .venv/.installed
	@$(ACTIVATE) && python scripts/mlflow_environment.py

.venv/.installed: pyproject.toml python_env.yaml $(UV)
	$(UV) venv --quiet --allow-existing --python ">=3.11" .venv
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
	$(ACTIVATE) && python -m pytest -m fault --reliability docs/reliability.md

# Twenty minutes of small runs and searches while what they need is killed.
soak: .venv/.tests-installed
	$(ACTIVATE) && python -m tests.soak

style: .venv/.tests-installed
	$(ACTIVATE) && ruff check . && ruff format --check . && lint-imports && bandit --quiet --recursive kd_mlflow -c pyproject.toml

# Also asks whether what is installed is known to be vulnerable, which changes from day to day: no test hangs on it.
lint: style
	$(ACTIVATE) && pip-audit --skip-editable --progress-spinner off

format: .venv/.tests-installed
	$(ACTIVATE) && ruff check --fix . && ruff format .

clean:
	rm -rf .venv .make build kd_mlflow.egg-info
