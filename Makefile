# A fresh machine needs Python 3.11 (or newer) and make. `make PYTHON=python3.12 ...` takes another.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
BENCHMARKS := losses narrow_maps throughput search scale preflight_matrix replay

.PHONY: quickstart test lint bench clean

quickstart: $(VENV)/installed
	$(BIN)/kdsearch launch experiments/quickstart.yaml

# Integration tests start servers and use all cores themselves, so they run one after the other.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit -q -n auto --dist loadfile -m "not slow"
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit -q -n 2 -m slow
	$(BIN)/pytest tests/integration -q

# One after the other, also after one that misses what it requires: they need the machine alone.
bench: $(VENV)/installed
	@failed=; for name in $(BENCHMARKS); do \
		$(BIN)/python -m tests.benchmarks.$$name || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "not as required:$$failed"; exit 1; }

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# The mark is written last, so that an interrupted installation is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
