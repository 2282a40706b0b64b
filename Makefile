# make setup   install into .venv, or into the active environment when that has a supported torch; re-runnable
# make train   setup, then the demo: a teacher, a student taught by it, one that is not, compared; ARGS="--help" for more
# make test    setup, then everything CI runs, but no kernel's proof that passed for the same sources and tools
# make test-all   make test with the slow sweeps and every proof
# make chaos   setup, then kills, signals, bad numbers and full disks by the dozen, and 20 000 damaged files: hours
# make same-bits  setup, then the working tree trains to the bytes of AGAINST, a commit (default HEAD): three minutes
# make bench   setup, then every comparison with peers at sizes for this machine: a table, a results file, a picture
# make wheel   tools, then dist/deit_kernels-*.whl, the ops alone, and dist/deit_fast-*.whl, which needs it
# make rooms   draw the floors of deit_fast/ anew, as docs/rooms.svg, from what its files import

SHELL := /bin/bash
PYTHON ?= python3
SUPPORTED := import importlib.metadata as m, sys; \
	v = m.version("torch").split("."); sys.exit((int(v[0]), int(v[1])) < (2, 11))
ACTIVE := $(shell $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null && echo yes)

ifeq ($(ACTIVE),yes)
# The environment's own torch stays: only the other packages are pinned.
PY := $(PYTHON)
STAMP := build/setup.stamp
PINS := build/constraints.txt
else
PY := .venv/bin/python
STAMP := .venv/setup.stamp
PINS := constraints.txt
endif

TOOLS := $(STAMP:setup.stamp=tools.stamp)
SOURCES := pyproject.toml kernels/pyproject.toml constraints.txt setup.py kernels/setup.py $(shell find csrc -type f)
PYTEST := $(PY) -m pytest -n 2 --dist worksteal --durations 20
ARGS ?=
AGAINST ?= HEAD

.PHONY: setup tools train test test-all chaos same-bits bench wheel lint clean

setup: $(STAMP)

.venv/bin/python:
	$(PYTHON) -m venv .venv

build/constraints.txt: constraints.txt
	mkdir -p build
	grep -vE '^(torch|torchvision|triton|numpy)==' constraints.txt > $@

# What compiles the packages, without what they need to run.
tools: $(TOOLS)

$(TOOLS): $(PINS) $(if $(filter yes,$(ACTIVE)),,.venv/bin/python)
	$(PY) -m pip install -q -c $(PINS) setuptools wheel ninja auditwheel
	$(if $(filter yes,$(ACTIVE)),,$(PY) -m pip install -q -c $(PINS) torch torchvision)
	@mkdir -p $(@D) && touch $@

$(STAMP): $(SOURCES) $(TOOLS)
	$(PY) -m pip install -q -c $(PINS) --no-build-isolation -e ./kernels -e '.[test]'
	@mkdir -p $(@D) && touch $@

train: setup
	$(PY) -m deit_fast demo $(ARGS)

test: setup lint
	$(PYTEST) -m "not slow" --skip-proven $(ARGS)

test-all: setup lint
	$(PYTEST) $(ARGS)

chaos: setup
	$(PY) -m pytest tests/chaos $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

same-bits: setup
	$(PY) -m tests.same_bits --against $(AGAINST) $(ARGS)

bench: setup
	$(PY) -m pip install -q -c $(PINS) --no-build-isolation -e ./kernels -e '.[test,bench]'
	$(PY) -m benchmarks $(ARGS)

wheel: tools
	rm -rf build/wheel build/lib* kernels/build
	$(PY) -m pip wheel -q --no-deps --no-build-isolation -w build/wheel ./kernels .
	$(PY) -m auditwheel repair --patcher none --exclude 'libtorch_*.so' --exclude 'libcudart.so.*' \
		-w dist build/wheel/deit_kernels-*.whl
	mv build/wheel/deit_fast-*.whl dist

.PHONY: rooms
rooms:
	$(PY) -m tests.draw_rooms

clean:
	rm -rf build dist *.egg-info kernels/build kernels/*.egg-info kernels/deit_kernels/*.so
