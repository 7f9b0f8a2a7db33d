# Every target does its own set-up: it needs python3 (3.11 or later), make and a package index, nothing else.
# Packages go to .venv, and are installed again only when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# pip does not compile all of the packages; what is imported is compiled once, and not by every process anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help fit article odenet hooks test test-slow test-sweep test-lowest lint types docs package bench bench-compare clean

help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

fit: $(VENV)/.installed-cli ## fit a predator-prey model to a century-old record, and report on it
	@$(BIN)/torchivp fit examples/data/lynx_hare.csv --model lotka-volterra --time year --observe hare,lynx \
		--noise lognormal --out report/hare-lynx

article: $(VENV)/.installed-article ## run the article's experiments beside torchdiffeq, into report/article
	@for name in van_der_pol lotka_volterra neural_van_der_pol lorenz; do echo "== $$name"; \
		OMP_NUM_THREADS=1 $(BIN)/python examples/article/$$name.py --out report/article || exit 1; done

odenet: $(VENV)/.installed-examples ## train ODE-Net and ResNet on handwritten digits, and compare what they cost
	@OMP_NUM_THREADS=1 $(BIN)/python examples/odenet.py --seeds 5 --out report/odenet $(ARGS)

test: $(VENV)/.installed-dev ## run the fast tests (ARGS="-k name" to choose)
	@$(PYTEST) $(ARGS)

test-slow: $(VENV)/.installed-dev ## run the slow tests
	@$(PYTEST) -m slow $(ARGS) || [ $$? -eq 5 ] # 5: there are none

test-sweep: $(VENV)/.installed-dev ## run every case of what the fast tests have some of, for minutes
	@$(PYTEST) -m sweep $(ARGS)

test-lowest: ## run the fast tests with the lowest release of torch that is supported, in .venv-lowest
	@$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

lint: $(VENV)/.installed-dev ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## check types
	@$(BIN)/pyright

docs: $(VENV)/.installed-docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict # not --quiet, which would hide warnings from --strict

package: $(VENV)/.installed-dev ## build sdist and wheel into dist/, and try the wheel in an environment without extras
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation > /dev/null # the sdist from here, the wheel from the sdist
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m package $(ARGS)

bench: $(VENV)/.installed-bench ## run the benchmarks, side by side with other libraries
	@$(BIN)/python -m benchmarks $(ARGS)

bench-compare: $(VENV)/.installed-bench ## time the benchmarks at another commit and here, in turn (BASE=main ARGS="--only lotka")
	@$(BIN)/python -m benchmarks.commits --base $(or $(BASE),main) $(ARGS)

hooks: $(VENV)/.installed-dev ## check style in every commit from now on, with pre-commit
	@$(BIN)/pre-commit install

clean: ## remove everything that was made, except environments
	rm -rf report site build dist benchmarks/results .pytest_cache .ruff_cache
	find . -name ".venv*" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("torchivp needs Python 3.11 or later; choose one with: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing torchivp[$*] into $(VENV)"
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c $(CONSTRAINTS) -e '.[$*]'
	@touch $@
