# Two commands are enough: `make demo` runs the product on one machine, `make test` tests it.
# Everything is installed into this checkout (.venv/) and kept in it (.demo/, .test/).
PYTHON ?= python3
# how many processes run the tests, each with servers of its own
PROCESSES ?= auto
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install demo demo-up demo-down demo-status demo-check demo-incident test test-all bench check lock clean

help:
	@echo "make demo        run the whole stack in the foreground (Ctrl-C stops all of it)"
	@echo "make demo-up     run it in the background; returns when everything is healthy"
	@echo "make demo-down   stop it"
	@echo "make demo-check  does Leasehold say what the demo's pods really did?"
	@echo "make demo-incident  a thief uses a pod's credential from elsewhere: watch the findings page"
	@echo "make test        style checks and tests, less than 10 minutes"
	@echo "make test-all    soaks and fault drills too"
	@echo "make bench       speed, as ratios against references measured in the same run"
	@echo "make check       style checks only"
	@echo "make lock        write requirements*.txt anew from pyproject.toml (needs uv)"

install: $(STAMP)

$(STAMP): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Leasehold needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "==> Making .venv and installing $$(grep -c '==' requirements-dev.txt) pinned packages (once; about 300 MB to fetch, 0.9 GB on disk)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --require-hashes --no-deps --disable-pip-version-check -r requirements-dev.txt 2>&1 \
		| sed -u -n -e 's/^Collecting \([^ ]*\).*/    \1/p' -e '/^ERROR/p' -e '/^Installing/p' -e '/^Successfully/s/ .*/ installed/p'; \
		$(BIN)/python -m pip check --disable-pip-version-check
	@touch $(STAMP)

demo: install
	@exec $(BIN)/python -m demo run

demo-up: install
	@exec $(BIN)/python -m demo up

demo-down:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m demo down; fi

demo-status:
	@$(BIN)/python -m demo status || true

demo-check:
	@$(BIN)/python -m demo check

demo-incident:
	@exec $(BIN)/python -m demo incident

check: install
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-timing 2>/dev/null || $(BIN)/lint-imports
	@git ls-files -co --exclude-standard 'templates/*.html' | xargs $(BIN)/djade --check --target-version 5.2
	@$(BIN)/mypy

test: check
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist loadgroup -m "not slow and not soak and not demo"
	@# a whole demo is a load of its own: nothing beside it
	@$(BIN)/python -m pytest -m "demo and not slow and not soak"

test-all: check
	@$(BIN)/python -m pytest -m "slow or soak or not slow"

bench: install
	@$(BIN)/python -m tests.bench

lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q -o requirements.txt
	uv pip compile pyproject.toml --group demo --group dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q -o requirements-dev.txt

clean: demo-down
	rm -rf .demo .test
