# Every target does its own set-up: a fresh clone needs Python 3.11 or newer with pip, nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Processes of `make test`; each computes on one thread.
WORKERS ?= 2
# Of `make fuzz`; a seed tries the same inputs again.
SEED ?= 0
SECONDS ?= 300

# Commands start faster from compiled modules; some shells forbid Python to keep them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo finetune-demo test test-web test-api test-js check test-kernels test-triton fuzz bench
.PHONY: package docs clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/ready-run ## caption, answer, read, detect and segment on a picture; overlays and a sheet in demo/
	$(BIN)/paligemma demo

finetune-demo: $(VENV)/ready-run ## teach the embedded model a class it has never seen; minutes
	$(BIN)/python examples/finetune_demo.py

test: $(VENV)/ready-dev ## every test
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations=10 $(TESTS)

test-web: $(VENV)/ready-dev ## the page in Chromium, which Debian installs where it is missing; a minute
	command -v chromium >/dev/null || { apt-get -q update && apt-get -q install -y chromium; }
	-npm install --silent --no-save --prefix build/web axe-core
	$(BIN)/python -m pytest -rs tests/serve/test_serve_page.py tests/serve/test_serve_page_documents.py

test-api: $(VENV)/ready-dev ## 5,000 requests drawn from /openapi.json; a minute
	$(BIN)/python -m tests.serve.schema_cases

check: $(VENV)/ready-dev ## format, lint, types and the order of the rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

test-js: $(VENV)/ready-dev ## exports under transformers.js in Node.js, which is there already; two minutes
	npm install --silent --no-save --ignore-scripts --prefix build/js @huggingface/transformers@4
	$(BIN)/python -m pytest -rs tests/export/test_export_onnx.py

test-kernels: $(VENV)/ready-dev ## the compiled kernels under the compiler's sanitizers; a minute
	mkdir -p build
	$(CC) -g -O1 -shared -fPIC -pthread -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover \
		-o build/sanitized.so $(wildcard src/paligemma/kernels/*.c) -lm
	PALIGEMMA_KERNELS=$(CURDIR)/build/sanitized.so ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) $(BIN)/python -m pytest tests/kernels \
		tests/model/test_packed_step.py

test-triton: $(VENV)/ready-dev ## the kernels for a GPU in an interpreter and by their compiler; a minute
	$(PIP) install --quiet 'triton>=3.9'
	$(BIN)/python -m pytest tests/model/test_triton_step.py

fuzz: $(VENV)/ready-dev ## try hostile inputs for SECONDS (300) from SEED (0)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --seconds $(SECONDS)

bench: $(VENV)/ready-dev ## measure speed and memory, beside transformers (minutes)
	$(BIN)/python benchmarks/full_size.py

package: $(VENV)/ready-dev ## build and try the packages in dist/; a minute
	$(BIN)/python .ci/package.py

docs: $(VENV)/ready-dev ## run the notebooks and build the site in build/site; a minute
	$(BIN)/python docs/site.py
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml

clean: ## delete what tools leave behind, and demo/
	rm -rf build dist demo src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and the virtual environment
	rm -rf $(VENV)

# torch comes first and alone, so that no other package can choose another build of it.
$(VENV)/ready-run: pyproject.toml constraints.txt setup.py $(wildcard src/paligemma/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"Python 3.11 or newer is needed, {sys.version.split()[0]} was found; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --requirement constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	$(BIN)/python -m compileall -q src
	touch $@

$(VENV)/ready-dev: $(VENV)/ready-run
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
