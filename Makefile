# Run `make` for the list of targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TPU_STAMP := $(VENV)/.installed-tpu
# Of the documentation site: an environment of its own, small and without JAX.
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
CORPUS ?= data_prep/sample
BENCH_CORPUS ?= $(CORPUS)
# Each text has a folder of its own, named after it and a sum of all its path, so that no other demo deletes its run.
quoted = '$(subst ','\'',$(1))'
DEMO := runs/demo$(if $(filter-out file undefined default,$(origin CORPUS)),$(shell \
	printf -- '-of-%s-%s' "$$(basename -- $(call quoted,$(CORPUS)) | LC_ALL=C tr -c '[:alnum:]._\n\200-\377-' _)" \
	"$$(printf %s $(call quoted,$(CORPUS)) | cksum | cut -d ' ' -f 1)"))
# A CPU build only: without the suffix an index would send gigabytes of CUDA. Used by tests alone.
TORCH := torch==2.13.0+cpu

# A file's tests share what they make, so a file stays in one process. Of the fast ones many wait for processes of theirs:
# three fill two cores.
PARALLEL := --dist loadfile --no-loadscope-reorder --numprocesses

TPU ?= tpu/tpu.yaml
TPU_COMMANDS := preflight create train status logs ssh stop delete

.DEFAULT_GOAL := help
.PHONY: help install tpu-compiler demo bench docs docs-serve docs-packages test test-slow test-long lint types format lock clean \
	$(TPU_COMMANDS:%=tpu-%)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv from the lock file

# What PYTHON is where it is too old or none; words that any Python can read.
unfit = $(shell $(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.stdout.write(sys.version.split()[0])' \
	2>/dev/null || echo not there)

$(STAMP): requirements.lock setup.cfg pyproject.toml
	$(if $(unfit),$(error PYTHON=$(PYTHON): $(unfit), expected Python 3.11 or newer))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(TPU_STAMP): $(STAMP) requirements-tpu.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-tpu.lock
	@touch $@

tpu-compiler: $(TPU_STAMP)  ## install the TPU compiler for electra-flax plan (Linux)

$(DOCS_STAMP): requirements-docs.lock
	$(if $(unfit),$(error PYTHON=$(PYTHON): $(unfit), expected Python 3.11 or newer))
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@touch $@

docs-packages: $(DOCS_STAMP)

# Its theme announces its end there; pyproject.toml says to which versions the site keeps.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS_STAMP)  ## build the documentation site, in site/ and site/ko/
	$(DOCS_VENV)/bin/mkdocs build --strict --quiet
	$(DOCS_VENV)/bin/mkdocs build --strict --quiet --config-file mkdocs.ko.yml

docs-serve: docs  ## serve it on this machine
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory site

# malloc asks for huge pages: a step on a CPU allocates gigabytes anew (docs/training.md).
demo bench: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# Examples, not documents: a text may be a single document.
HELD_OUT := --validation-fraction 0.1 --validation-unit example

# First from nothing but the text, then as most people would: the model that ships with the package goes on learning.
demo: $(STAMP)  ## from text to models in minutes; CORPUS=path for your text
	rm -rf $(DEMO)
	@echo "--- 1 of 2: a model from scratch, on this text alone ---"
	$(BIN)/electra-data vocab --corpus $(CORPUS) --out $(DEMO)/vocab --size 2000 --unused 20
	$(BIN)/electra-data shard --corpus $(CORPUS) --vocab $(DEMO)/vocab --out $(DEMO)/shards --max-seq-length 64 $(HELD_OUT)
	$(BIN)/electra-flax pretrain --config configs/demo.yaml --data $(DEMO)/shards --workdir $(DEMO)/run --simulate-devices 8
	$(BIN)/electra-flax evaluate --workdir $(DEMO)/run --simulate-devices 8
	$(BIN)/electra-flax export --workdir $(DEMO)/run --out $(DEMO)/export --simulate-devices 8
	@echo "--- 2 of 2: tiny-ko (ships with the package, trained on 30 MB of Korean) continues on this text ---"
	$(BIN)/electra-data shard --corpus $(CORPUS) --vocab tiny-ko --out $(DEMO)/tiny-ko/shards --max-seq-length 64 $(HELD_OUT)
	$(BIN)/electra-flax pretrain --config configs/demo_continue.yaml --init-from tiny-ko --data $(DEMO)/tiny-ko/shards --workdir $(DEMO)/tiny-ko/run --simulate-devices 8
	$(BIN)/electra-flax evaluate --workdir $(DEMO)/tiny-ko/run --simulate-devices 8
	$(BIN)/electra-flax export --workdir $(DEMO)/tiny-ko/run --out $(DEMO)/tiny-ko/export --simulate-devices 8
	@echo "--- comparison: replaced tokens found by the model from tiny-ko, and by the one from scratch; drawn at temperature 2, so less likely words than in training ---"
	$(BIN)/electra-flax show --temperature 2 --model $(DEMO)/tiny-ko/export --data $(DEMO)/tiny-ko/shards --model $(DEMO)/export --data $(DEMO)/shards

$(TPU_COMMANDS:%=tpu-%): tpu-%: $(STAMP)
	$(BIN)/python -m tpu.launch $* --settings $(TPU) $(ARGS)

tpu-train:  ## train on Cloud TPU (docs/tpu.md); TPU=my_tpu.yaml
tpu-status:  ## show its state; also tpu-preflight, -create, -logs, -ssh
tpu-stop:  ## save, stop, delete the machine; tpu-delete: at once

test: $(STAMP)  ## run the tests, without the slow and long ones
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" 2>/dev/null \
		|| echo "NOT CHECKED: no CPU build of PyTorch ($(TORCH)) for this Python here; tests against PyTorch are skipped"
	@$(MAKE) --no-print-directory tpu-compiler 2>/dev/null \
		|| echo "NOT CHECKED: the TPU compiler does not install here; tests that compile for TPUs are skipped"
	@$(MAKE) --no-print-directory docs-packages 2>/dev/null \
		|| echo "NOT CHECKED: the packages of the documentation site do not install here; its tests are skipped"
	$(BIN)/python -m pytest $(PARALLEL) 3 -m "not slow and not long"

bench: $(STAMP)  ## compare speeds; BENCH_CORPUS=text TENSORFLOW_PYTHON=python
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python benchmarks/step_speed.py --config configs/electra_small.yaml --batch 32 --vocab 35000 --out runs/bench
	$(BIN)/electra-data vocab --corpus $(BENCH_CORPUS) --out runs/bench/vocab --size 35000
	$(BIN)/python benchmarks/data_speed.py --corpus $(BENCH_CORPUS) --vocab runs/bench/vocab --out runs/bench
	rm -rf runs/bench/shards
	$(BIN)/electra-data shard --corpus $(BENCH_CORPUS) --vocab runs/bench/vocab --out runs/bench/shards --max-seq-length 128
	$(BIN)/python benchmarks/input_speed.py --data runs/bench/shards --out runs/bench $(if $(TENSORFLOW_PYTHON),--tensorflow-python $(TENSORFLOW_PYTHON))
	$(BIN)/python benchmarks/save_speed.py --config configs/electra_small.yaml --batch 8 --out runs/bench

test-slow: $(STAMP)  ## endurance, gs://, shards in TensorFlow, transformers 5
	$(BIN)/python -m pytest $(PARALLEL) 2 -m "slow and not long"

test-long: $(STAMP)  ## killed runs, a rehearsal of tpu-train, heads in TensorFlow
	$(BIN)/python -m pytest $(PARALLEL) 2 -m long

lint: $(STAMP)  ## check rules and format (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## check types (mypy)
	$(BIN)/mypy

format: $(STAMP)  ## format the code (ruff)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## update the lock files (needs uv)
	uv pip compile setup.cfg --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --output-file requirements.lock --quiet
	uv pip compile setup.cfg --extra tpu --extra gcs --constraint requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --output-file requirements-tpu.lock --quiet
	uv pip compile --group pyproject.toml:docs --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --output-file requirements-docs.lock --quiet

clean:  ## remove the virtual environments, the site and the demo
	rm -rf $(VENV) $(DOCS_VENV) site $(DEMO)
