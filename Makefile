# Everything a newcomer or a contributor runs. Needs Python 3.11+ with venv, and make; the rest goes into .venv.
#   make demo                      the default Python
#   PYTHON=python3.12 make test    another one, in a .venv of its own

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ifeq ($(origin PYTHON),file)
VENV ?= .venv
else
VENV ?= .venv-$(notdir $(PYTHON))
endif
RUN := $(VENV)/bin/python
MINUTES ?= 10
# Other arguments for pytest, the demo or the benchmarks: make test ARGS='-k rotation'
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test conformance proof soak bench bench-quick fleet lint docs release matrix agents consumers clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.demo  ## Passwords change under load on a real Postgres, and nothing fails (30 s)
	@$(RUN) -m aiopqr demo $(ARGS)

test: $(VENV)/.test  ## The tests, on an embedded Postgres (5 to 10 minutes on two cores)
	$(RUN) -m pytest -q -n 4 $(ARGS)

conformance: $(VENV)/.test  ## asyncpg's own pool tests, on this pool, with both session resets
	$(RUN) tests/conformance/run.py --session-reset=full $(ARGS)
	$(RUN) tests/conformance/run.py --session-reset=deferred $(ARGS)

proof: $(VENV)/.test  ## The proofs, in full
	HYPOTHESIS_PROFILE=proof AIOPQR_PROOF=1 $(RUN) -m pytest -q -m proof --timeout=3600 $(ARGS)
	AIOPQR_PROOF=1 $(RUN) -m pytest -q -m proof --loop=uvloop tests/pool/test_random_sessions.py $(ARGS)

soak: $(VENV)/.test  ## Chaos on the real server for MINUTES=10, with both session resets
	AIOPQR_PROOF=1 AIOPQR_SOAK_MINUTES=$(MINUTES) $(RUN) -m pytest -q -s -m proof -k soak --timeout=0 $(ARGS)

bench: $(VENV)/.test  ## The benchmarks, compared with every peer (20 minutes)
	$(RUN) -m benchmarks $(ARGS)

bench-quick: $(VENV)/.test  ## The benchmarks in brief (under 2 minutes)
	$(RUN) -m benchmarks --quick $(ARGS)

fleet: $(VENV)/.test  ## Up to 10,000 instances, simulated
	$(RUN) -m benchmarks fleet $(ARGS)

lint: $(VENV)/.test  ## ruff and mypy, as strict as they get
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.docs  ## The documentation site, into site/; a broken link or an undocumented public name fails it
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict $(ARGS)

release: $(VENV)/.test  ## Build wheel and sdist, and install, import and test them in empty environments (5 minutes)
	$(RUN) -m tools.release $(ARGS)

matrix: $(VENV)/.test  ## The tests that depend on them, on each Python, Postgres and PgBouncer at hand (30 minutes)
	$(RUN) -m tools.matrix $(ARGS)

agents: $(VENV)/.test  ## A pool, a rotation and an SQLAlchemy engine under the agents that people run (5 minutes)
	$(RUN) -m tools.agents $(ARGS)

consumers: $(VENV)/.test  ## Queues, ORMs and plugins on the pool, by the documentation's recipes (3 minutes)
	$(RUN) -m tools.consumers $(ARGS)

clean:  ## Remove what these commands have made
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .conformance .envs build dist site
	find aiopqr tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made: Makefile
	@[ -n '$(PYTHON)' ] || { echo 'aiopqr needs Python 3.11 or newer: apt-get install python3 python3-venv'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo '$(PYTHON) is older than Python 3.11, or is not there'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo '$(PYTHON) has no ensurepip: apt-get install python3-venv'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check 'pip>=25.1'
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(RUN) -m pip install -q -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(RUN) -m pip install -q -e '.[demo,aws,vault,fastapi,sqlalchemy,opentelemetry]' --group test --group lint
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.test
	$(RUN) -m pip install -q --group docs
	@touch $@
