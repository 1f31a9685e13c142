# `make demo` and `make test` are all a fresh clone needs; `make help` lists the rest.
# pip reads its usual settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...); PYTHON=... picks the interpreter.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
NEEDS := pyproject.toml constraints.txt $(VENV)/.created

.DEFAULT_GOAL := help
.PHONY: help demo test lint types wheel notebooks check clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.runtime ## record, learn, step and score a pendulum; writes runs/demo/report.html
	$(BIN)/worldflow demo

test: $(VENV)/.dev ## run the test suite, slow tests left out (PYTEST_ADDOPTS adds options)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow"

lint: $(VENV)/.dev ## check format and lint rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/.dev ## check types
	$(BIN)/pyright

wheel: $(VENV)/.dev ## build sdist and wheel, install the wheel elsewhere, import every module of it
	$(BIN)/python .ci/check_wheel.py dist

notebooks: $(VENV)/.dev ## execute every notebook from top to bottom
	@for notebook in notebooks/*.ipynb; do \
	    [ -e "$$notebook" ] || continue; \
	    $(BIN)/jupyter-execute --kernel_name=python3 --timeout=300 "$$notebook" || exit 1; \
	done

check: lint types test wheel notebooks ## all of the above but the demo

clean: ## remove what the commands wrote, but neither .venv nor runs/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find worldflow envs agents tests .ci -name __pycache__ -prune -exec rm -rf {} +

# Installs $(1) at the pinned versions and names the large downloads. A pipe hides pip's exit status: the file tells it.
define install
	@rm -f $(VENV)/.installed
	@{ PYTHONWARNINGS=ignore $(PIP) install --progress-bar off -c constraints.txt $(1) && touch $(VENV)/.installed; } \
	    | sed -n -e 's/^ *Downloading \(.*\.whl (.*[MG]B)\)$$/  \1/p' -e 's/^Installing collected packages.*/  unpacking/p'
	@rm $(VENV)/.installed 2>/dev/null || { echo 'worldflow: pip failed, see above; run the same command again' >&2; exit 1; }
endef

$(VENV)/.runtime: $(NEEDS)
	@echo 'worldflow: installing into $(VENV) (a few minutes the first time)'
	$(call install,--no-build-isolation -e .)
	@touch $@

$(VENV)/.dev: $(NEEDS)
	@echo 'worldflow: installing into $(VENV), with the tools for tests (a few minutes the first time)'
	$(call install,--no-build-isolation -e '.[dev]')
	$(call install,--no-deps stable-worldmodel)  # its solvers alone, for a test: all of it wants torchvision
	@touch $(VENV)/.runtime $@

# An environment that is already there is kept; a half-made one is completed.
$(VENV)/.created:
	@new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	    for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	        if $$python -c "$$new_enough" 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo 'worldflow: no Python 3.11 or newer found; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; \
	        exit 1; \
	    fi; \
	    $$found -m venv $(VENV) || { echo 'worldflow: venv failed, see above (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }; \
	fi; \
	$(BIN)/python -c "$$new_enough" || { echo 'worldflow: $(VENV) holds a Python older than 3.11; remove $(VENV) and try again' >&2; exit 1; }
	@$(PIP) install --quiet -c constraints.txt pip setuptools
	@touch $@
