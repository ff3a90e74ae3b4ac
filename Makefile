# A fresh machine needs Python 3.11 (or newer) and make. `make PYTHON=python3.12 ...` takes another.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
BENCHMARKS := losses narrow_maps waiting throughput workers views photographs search scale looking preflight_matrix replay

.PHONY: quickstart test unit integration endurance lint bench clean
.NOTPARALLEL:

quickstart: $(VENV)/installed
	$(BIN)/kdsearch launch experiments/quickstart.yaml

# What fails in one part does not hide what would fail in the other.
test: $(VENV)/installed-test
	$(MAKE) --no-print-directory --keep-going unit integration

unit: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit -q -rs -n auto --dist loadfile

integration: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/integration -q -rs -n 3 --dist loadfile \
		--no-loadscope-reorder

# Random kills, outages and many trials: what takes long, and repeats what the tests show once.
endurance: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/endurance -q -rs -n 3 --dist loadfile \
		--no-loadscope-reorder --ignore=tests/endurance/alone
	$(BIN)/pytest tests/endurance/alone -q -rs

# One after the other, also after one that misses what it requires: they need the machine alone.
# Ctrl-C ends them all.
bench: $(VENV)/installed-test
	@failed=; for name in $(BENCHMARKS); do \
		$(BIN)/python -m tests.benchmarks.$$name || { \
			status=$$?; test $$status -ne 130 || exit 130; failed="$$failed $$name"; }; \
	done; test -z "$$failed" || { echo "not as required:$$failed"; exit 1; }

lint: $(VENV)/installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# Marks are written last, so that an interrupted installation is done again. Of 24,000 modules most are
# never imported: what is, Python compiles then, once, which containers often forbid by this variable.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

# On top of the package, what an extra of pyproject.toml names.
$(VENV)/installed-%: $(VENV)/installed
	$(INSTALL) -e '.[$*]'
	touch $@
