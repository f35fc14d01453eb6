# `make help` lists the targets. Each installs the Debian packages it lacks (as root) and makes .venv,
# which is made anew when setup.py or its lock has changed. `make test WORKERS=` runs one test at a time.

PYTHON ?= python3
RELEASE ?= bookworm
WORKERS ?= -n 4 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
LOCK := requirements/checkout.lock
INSTALL := $(BIN)/pip install -qq --no-build-isolation --constraint $(LOCK)
TYPED := $(wildcard vac tests bench examples packaging tools/each_python.py setup.py)

export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo unit test test-all fresh lint format soak bench site venv lock clean packages-run packages-fresh packages-test packages-browser packages-package deb rpm try-deb puppet ansible
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

demo: .venv/run-stamp  ## a factory with three machinetypes on this host
	$(BIN)/python examples/demo/demo.py

unit: lint  ## lint, unit tests, also with the oldest packages on Python 3.9 and the newest on 3.13
	$(BIN)/python tools/each_python.py 3.9 3.13
	$(BIN)/python -m pytest $(WORKERS) tests/unit

test: lint  ## lint, unit tests, and tests with real engines
	$(BIN)/python -m pytest $(WORKERS)

test-all: lint packages-browser  ## the same, the tests that take many minutes, and unit tests on 3.9 and 3.13
	$(BIN)/python tools/each_python.py 3.9 3.13
	$(BIN)/python -m pytest $(WORKERS) -m ""

fresh: packages-fresh  ## demo and unit in a bare Debian root: RELEASE=trixie or bookworm; with ALL=1 demo and test
	tools/fresh $(RELEASE) sh -c 'make demo && make $(if $(ALL),test,unit)'

lint: .venv/dev-stamp  ## style, types, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports

format: .venv/dev-stamp  ## what ruff can put right by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

soak: .venv/dev-stamp  ## a real factory under random faults, judged by its machines: MINUTES=60 SEED=1 MODELS=bubblewrap,podman
	$(BIN)/python -m tests.faults.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(MODELS),--models $(MODELS))

bench: .venv/dev-stamp  ## time and memory of the factory
	$(BIN)/python -m bench

site: .venv/dev-stamp  ## the documentation as web pages, in build/site
	$(BIN)/python -m tools.site

venv: .venv/dev-stamp  ## only make .venv

deb: packages-package  ## Debian package of HEAD, in build/deb
	packaging/build deb

rpm: packages-package  ## RPM of HEAD for EL9, in build/rpm; on Debian with stand-ins for macros of EL9
	packaging/build rpm

try-deb: packages-fresh  ## build, install, use, upgrade and remove it in a bare Debian root: RELEASE=trixie or bookworm; GUEST=1 also in an emulated host
	tools/fresh $(RELEASE) env GUEST=$(GUEST) packaging/try_deb

puppet: packages-fresh  ## check puppet/vac and apply it in a bare Debian root: RELEASE=trixie (Puppet 8) or bookworm (7)
	tools/fresh $(RELEASE) packaging/try_managed puppet

ansible: packages-fresh  ## check ansible/vac and apply it in a bare Debian root: RELEASE=trixie or bookworm
	tools/fresh $(RELEASE) packaging/try_managed ansible

lock: packages-test  ## renew requirements/*.lock with the newest versions
	tools/lock

clean:  ## remove what the other targets made
	rm -rf .venv build dist *.egg-info .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

packages-run:
	@tools/bootstrap run

packages-fresh:
	@tools/bootstrap fresh

packages-package:
	@tools/bootstrap package

packages-browser:
	@tools/bootstrap browser

packages-test:
	@tools/bootstrap test

# The versions are the lock's, also of what builds packages from source: hence no isolated builds, which fetch their own.
.venv/run-stamp: setup.py $(LOCK) | packages-run
	$(PYTHON) -m venv --clear .venv
	$(INSTALL) setuptools wheel
	$(INSTALL) -e .
	@touch $@

.venv/dev-stamp: .venv/run-stamp | packages-test
	$(INSTALL) -e '.[dev]'
	@touch $@
