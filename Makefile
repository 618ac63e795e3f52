# What people type. A fresh machine needs Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help serve demo showcase doctor sandbox test lint sdk-matrix bench screenshots compose-test lock clean

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/.serves ## Set everything up and start the server
	$(BIN)/threadmill serve

demo: $(VENV)/.serves ## A streamed conversation with a scripted model, no key needed
	$(BIN)/threadmill demo

showcase: $(VENV)/.serves ## The dashboard on a month of invented work, no key needed
	$(BIN)/threadmill demo --serve

doctor: $(VENV)/.serves ## What is missing, and what to type
	$(BIN)/threadmill doctor

sandbox: $(VENV)/.serves ## Build the image that code_interpreter runs code in (needs Docker)
	$(BIN)/threadmill sandbox build

test: $(VENV)/.tests ## Set everything up and run all tests
	$(BIN)/python tests/dashboard/axe.py
	$(BIN)/pytest

lint: $(VENV)/.tests ## Formatting, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sdk-matrix: $(VENV)/.tests ## The same conversation through six generations of the official SDKs
	$(BIN)/python tests/sdk/matrix/run.py

bench: $(VENV)/.tests ## Measure, and print the table of bench/README.md
	$(BIN)/python -m bench
	$(BIN)/python -m bench.search
	$(BIN)/python -m bench.ingest
	$(BIN)/python -m bench.code
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.dashboard

screenshots: $(VENV)/.tests ## Make the pictures in docs/screenshots (needs Chromium)
	$(BIN)/python tests/dashboard/screenshots.py

compose-test: $(VENV)/.tests ## docker-compose.yml for real; LOCAL_IMAGES=1 where there is no registry
	LOCAL_IMAGES=$(LOCAL_IMAGES) $(BIN)/pytest tests/deploy/compose.py

lock: $(VENV)/.tests ## Pin the newest versions that pyproject.toml admits
	$(BIN)/uv pip compile -q --upgrade --universal --no-emit-index-url --no-header \
		--python-version 3.11 --extra otel pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --upgrade --universal --no-emit-index-url --no-header \
		--python-version 3.11 --extra otel pyproject.toml --group dev -o requirements-dev.lock
	$(BIN)/uv pip compile -q --upgrade --universal --no-emit-index-url --no-header \
		--python-version 3.12 --only-binary :all: \
		sandbox-image/requirements.in -o sandbox-image/requirements.txt

clean: ## Remove the virtual environment and what was built
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serves: requirements.lock pyproject.toml hatch_build.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.tests: requirements-dev.lock $(VENV)/.serves
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@
