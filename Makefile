# zk0d: `make demo` shows the whole system on this machine, `make test` checks it. Both set up all that they need.
SHELL := /bin/bash
PY := .venv/bin/python
POLICY ?= smolvla
DEMO_OUT ?= demo-out
export HF_HUB_OFFLINE := 1

.PHONY: help demo test lint bench lock setup setup-core clean
help:
	@echo "make demo [POLICY=smolvla|act] [DEMO_OUT=DIR]   a hub and three operators with virtual arms, end to end"
	@echo "make test [ARGS='-k link'] [JOBS=2]             all tests, JOBS files of them at a time"
	@echo "make fuzz [CASES=1000000] [SEED=N]              bad input for every parser and machine of the link"
	@echo "make lint                                       ruff and mypy --strict"
	@echo "make bench, make bench-NAME                     benchmarks, small or one at full size"
	@echo "make setup-core                                 only what zk0d, zk0-hub and zk0ctl need (seconds)"
	@echo "make deb                                        Debian packages into dist/"
	@echo "make deb-check                                  the same, then lintian, piuparts and hadolint (piuparts needs root)"
	@echo "make test-booted                                install, use and purge them in a booted Debian 13 (needs root)"
	@echo "make test-oldest                                daemon, hub, link and CLI on the oldest versions promised"
	@echo "make lock                                       resolve packaging/lock anew"

setup:
	@packaging/setup.sh full
setup-core:
	@packaging/setup.sh core

demo: setup
	@$(PY) -m zk0d.demo --policy $(POLICY) --out "$(DEMO_OUT)"

# Two files of tests at a time, in their order: the long ones come first. JOBS=0 runs them in this process.
JOBS ?= 2
test: setup
	@$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

CASES ?= 1000000
.PHONY: fuzz
fuzz: setup
	@$(PY) tests/faults/fuzz.py --cases $(CASES) $(if $(SEED),--seed $(SEED))

lint: setup
	@$(PY) -m ruff check . && $(PY) -m ruff format --check --quiet . && $(PY) -m mypy

bench: setup
	@for f in bench/[a-z]*.py; do $(PY) $$f --small || exit 1; done
bench-%: setup
	@$(PY) bench/$*.py

# pyproject.toml is the only place where dependencies are named; the locks hold exact versions and hashes, and no index address.
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-emit-index-url --no-header --no-annotate
# What the runtime of a machine without a GPU leaves out: torch loads these only for one (zk0d/ctl/runtime_lists.py).
GPU_ONLY = triton nvidia-cusolver nvidia-cuda-nvrtc nvidia-nvtx cuda-bindings cuda-pathfinder cuda-toolkit
lock: setup
	@$(COMPILE) pyproject.toml --extra ml --extra virtual --extra flower --extra privacy --extra bench --extra dev -o packaging/lock/full.txt
	@printf 'uv>=0.9\nsetuptools\n' | $(COMPILE) - -c packaging/lock/full.txt -o packaging/lock/bootstrap.txt
	@$(COMPILE) pyproject.toml -c packaging/lock/full.txt -o packaging/lock/core.txt
	@$(COMPILE) pyproject.toml --extra ml --extra virtual -c packaging/lock/full.txt -o packaging/lock/runtime.txt
	@$(COMPILE) pyproject.toml --extra ml --extra virtual -c packaging/lock/full.txt $(GPU_ONLY:%=--no-emit-package %) -o packaging/lock/runtime-cpu.txt
	@echo "systemd-python>=235" | $(COMPILE) - -o packaging/lock/systemd.txt

# Packages, and a booted Debian 13 to try them in; neither needs the Python environment's training packages.
.PHONY: deb deb-check test-booted test-oldest
deb:
	@packaging/deb/build.sh dist
deb-check: deb
	@packaging/deb/lint.sh dist && packaging/docker/lint.sh && packaging/deb/piuparts.sh dist
test-booted: setup
	@ZK0_BOOTED=1 $(PY) -m pytest tests/booted $(ARGS)
test-oldest: setup-core
	@packaging/oldest.sh $(ARGS)

clean:
	rm -rf .venv .setup.log demo-out bench/results .pytest_cache .mypy_cache .ruff_cache build
