# Two commands do everything on a fresh machine with python3.11+, git and make: `make book` and `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= book,cluster,trak,dev
INSTALLED := $(VENV)/.installed-$(EXTRAS)
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# A book starts a kernel for each page, and the tests start many processes more. Where this is set, as it often is in
# containers, each would compile all that it imports, which is more work than to import it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help book pdf test lab check notebooks lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Wheels of PyTorch: "cpu", or "default", which brings gigabytes of CUDA. Chosen by whether a GPU is there.
TORCH ?= $(shell nvidia-smi >/dev/null 2>&1 && echo default || echo cpu)
INSTALL_CPU := uv pip install --python $(BIN)/python --torch-backend=cpu
INSTALL_DEFAULT := uv pip install --python $(BIN)/python
INSTALL_PIP := python -m pip install

# Everything the targets need, installed again only when pyproject.toml, constraints.txt or EXTRAS change. The extra
# ffcv is left out because it needs a compiler and system libraries (CONTRIBUTING.md). uv is several times faster than
# pip, which knows mirrors that uv does not; the CPU wheels come from PyTorch's own index, which may be out of reach.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; install it or run make PYTHON=/path/to/python3."; exit 1; }
	@SECONDS=0; echo "== Installing into $(VENV) with $$($(PYTHON) --version) (a few minutes the first time)"; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet uv; \
	for install in $(if $(filter cpu,$(TORCH)),"$(INSTALL_CPU)") "$(INSTALL_DEFAULT)" "$(INSTALL_PIP)"; do \
		if $(BIN)/$$install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'; then \
			touch $@; echo "   installed in $$SECONDS s by $$install"; exit 0; fi; \
		echo "   $$install did not succeed; trying the next way"; \
	done; exit 1

book: $(INSTALLED) ## Execute what changed and build the site into _build/html; PAGES=04-influence,05-removal for some
	@SECONDS=0; echo "== Building the book: any warning or failed cell fails the build"; \
	$(BIN)/python book/build.py $(PAGES); \
	echo "   book built in $$SECONDS s"

pdf: $(INSTALLED) ## Print the site that make book wrote as one file, _build/book.pdf
	@$(BIN)/python book/pdf.py

test: $(INSTALLED) ## Run the tests (those of the site need `make book` first)
	@echo "== Running the tests"; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

lab: $(INSTALLED) ## Open the chapters in JupyterLab
	@echo "== Starting JupyterLab in chapters/ (stop it with Ctrl+C)"; \
	$(BIN)/python book/sync_notebooks.py; \
	$(BIN)/jupyter lab --notebook-dir=chapters

check: $(INSTALLED) ## Lint, formatting, types, and notebooks that agree with their chapters
	@SECONDS=0; echo "== ruff check, ruff format --check, pyright, notebooks"; \
	$(BIN)/ruff check; \
	$(BIN)/ruff format --check; \
	$(BIN)/pyright; \
	$(BIN)/python book/sync_notebooks.py --check; \
	echo "   checked in $$SECONDS s"

notebooks: $(INSTALLED) ## Write chapters/*.ipynb from chapters/*.md
	@$(BIN)/python book/sync_notebooks.py

lock: $(INSTALLED) ## Rewrite constraints.txt; UPGRADE="--upgrade-package zarr" lets one package move
	@SECONDS=0; echo "== Locking every extra in constraints.txt (versions there are kept unless UPGRADE says otherwise)"; \
	$(BIN)/python -m pip install --quiet uv; \
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --fork-strategy fewest \
		--no-header --no-annotate --output-file constraints.txt $(UPGRADE) > /dev/null; \
	echo "   locked in $$SECONDS s"

clean: ## Remove builds, caches and fetched scripts; the environment stays
	@echo "== Removing _build, book/_vendor and caches (remove $(VENV) yourself for a fresh environment)"; \
	rm -rf _build book/_vendor .pytest_cache .ruff_cache .hypothesis; \
	find dtl tests book -name __pycache__ -type d -prune -exec rm -rf {} +
