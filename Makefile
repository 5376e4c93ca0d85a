# make run: set up, then start pannier.   make test: set up, then check and test everything.
# All that is installed goes to .venv in this checkout; only `make test`, as root, may ask apt for more.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
# How many processes run tests at once: most of these wait for servers, so that two for each of two cores gain most.
WORKERS ?= 4

# The interpreter: given as `make PYTHON=...`, else python3 if it is 3.11 or 3.12, for which there is a wheel with
# a redis-server in it, else a python3.12 or python3.11, else any from 3.11 on. Each is run to see if it works.
PYTHON ?=
find_python = \
  try() { "$$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$2))" >/dev/null 2>&1; }; \
  found=; \
  for candidate in $(or $(PYTHON),python3 python3.12 python3.11); do \
    if [ -z "$$found" ] && try $$candidate 12; then found=$$candidate; fi; \
  done; \
  for candidate in $(or $(PYTHON),python3 python3.14 python3.13); do \
    if [ -z "$$found" ] && try $$candidate 999; then found=$$candidate; fi; \
  done; \
  if [ -z "$$found" ]; then echo "make: no Python from 3.11 on found; install one," \
    "or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi

# Whether pannier finds a server to bundle.
has_server = $(BIN)/python -c "from proxy.upstream.embedded import find_server; find_server()" 2>/dev/null

# Whether apt may be asked: we are root, and it exists. Services are not started (policy-rc.d, for the time of the
# installation, unless the machine has one of its own).
apt_usable = [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null
define apt_install
  policy=/usr/sbin/policy-rc.d; mine=; \
  [ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' >$$policy && chmod +x $$policy && mine=1; }; \
  { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(1) >/dev/null 2>&1 \
    || { apt-get update >/dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends $(1) >/dev/null 2>&1; }; }; \
  installed=$$?; [ -z "$$mine" ] || rm -f $$policy; [ $$installed = 0 ]
endef

.PHONY: help run test lint bench bench-peers compiled clean tools peers compiler

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

run: $(VENV)/.runs  ## start pannier on 127.0.0.1:6380 (options: make run ARGS="--upstream redis://...")
	@exec $(BIN)/pannier $(ARGS)

test: $(VENV)/.tests tools  ## run every check and test
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --cov --cov-report=term $(ARGS)

lint: $(VENV)/.tests  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

bench: $(VENV)/.tests  ## measure CPU per operation and throughput, beside Redis itself
	$(BIN)/python -m bench $(ARGS)
	$(BIN)/python -m bench.quoting

bench-peers: $(VENV)/.tests peers  ## the same beside Envoy, twemproxy and HAProxy: half an hour
	-@$(MAKE) --no-print-directory compiled
	$(BIN)/python -m bench.peers $(ARGS)
	$(BIN)/python -m bench.quoting

compiled: $(VENV)/.tests compiler  ## build a wheel whose hot modules are compiled: docs/compiled.md
	@$(BIN)/python deploy/compiled/build.py --out dist

clean:  ## remove .venv and everything generated
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What tests use beside Python, if it is there or apt may be asked for it; the tests that need what is not there are
# skipped, and say so: another Redis than the wheel's 6.2 (the system's, 7.x as a rule), a browser for the page,
# Prometheus' own judgement of the rules.
wanted = redis-server:redis-server chromium:chromium promtool:prometheus

# What is compared with Pannier, and the load for it, likewise; the report names who was not there.
compared = redis-server:redis-server redis-benchmark:redis-tools nutcracker:nutcracker haproxy:haproxy

define provide
@for each in $(1); do \
	  command -v $${each%%:*} >/dev/null && continue; \
	  if $(apt_usable); then \
	    echo "make: installing $${each##*:} for $(2) (apt-get; nothing is started)"; \
	    ( $(call apt_install,$${each##*:}) ) && continue; \
	  fi; \
	  echo "make: no $${each%%:*} on this machine: going on without $(3)"; \
	done
endef

compiler:
	$(call provide,cc:gcc,the compiled wheel,a compiler)

tools:
	$(call provide,$(wanted),the tests,the tests that need it)

peers:
	$(call provide,$(compared),the comparison,it)

# Three stamps: the environment, with what runs pannier in it, with what tests it and is compared with it.
$(VENV)/.made:
	@$(find_python); \
	echo "make: setting up $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV); \
	  if $(apt_usable); then echo "make: installing python3-venv (apt-get)"; \
	    ( $(call apt_install,python3-venv) ) || true; fi; \
	  $$found -m venv $(VENV); \
	}
	@touch $@

$(VENV)/.runs: $(VENV)/.made pyproject.toml
	@echo "make: installing pannier into $(VENV)"
	@$(PIP) install --editable .
	@$(has_server) || { \
	  echo "make: no wheel with a redis-server for this Python and machine, and none on the PATH"; \
	  if $(apt_usable); then echo "make: installing redis-server (apt-get; it is not started)"; \
	    ( $(call apt_install,redis-server) ) || true; fi; \
	  $(has_server) || echo "make: going on without: pannier will need --upstream redis://..." >&2; \
	}
	@touch $@

$(VENV)/.tests: $(VENV)/.runs
	@echo "make: installing the tools for the tests into $(VENV)"
	@$(PIP) install --editable '.[dev,deploy,peers]'
	@touch $@
