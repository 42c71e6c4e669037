# Two commands set everything up on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-chance test-vllm test-clients check format lint types bench bench-vllm demo-model demo-guard demo-table real-model real-guard data-is-given clean

help:
	@echo "make serve       set up once, then serve the bundled demo model; or MODEL=... GUARD=... HOST=... PORT=..."
	@echo "make test        set up once, then run the tests"
	@echo "make test-slow   also the tests that take minutes"
	@echo "make test-chance tests that wait for others, again and again beside full cores; or TURNS=50 WITHIN=3600"
	@echo "make test-vllm   the engine on vLLM, in an environment of its own (some GB); VLLM=folder that is or will be it"
	@echo "make test-clients clients that people use, each in an environment of its own (some GB); CLIENTS=folder for them"
	@echo "make check       format, lint, strict types, tests"
	@echo "make bench       benchmarks, each figure a ratio within one run"
	@echo "make bench-vllm  the guard on vLLM beside plain vllm serve; VLLM=folder as above"
	@echo "make demo-table  accuracy, attack success and refusals of the bundled model, with and without its guard"
	@echo "make demo-model  train the bundled demo model from scratch"
	@echo "make demo-guard  fit the bundled guard"
	@echo "make real-model  bring SmolLM2-135M-Instruct into runs/smollm2, once"
	@echo "make real-guard  fit, evaluate and serve a guard for it on public sets; DATA=folder that holds them"

# A stamp per level, so that `make serve` installs no test tools and neither is done twice.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.real: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	@touch $@ $(VENV)/.serve

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.serve $(VENV)/.real

# Only what is given on make's own command line: environments have a HOST that means something else (conda's, a shell's).
option = $(if $(filter command line,$(origin $(1))),--$(2) '$($(1))')

serve: $(VENV)/.serve
	@$(BIN)/autosteer serve $(call option,MODEL,model) $(call option,GUARD,guard) \
		$(call option,HOST,host) $(call option,PORT,port)

test: $(VENV)/.dev
	$(BIN)/pytest -n auto -m "not slow and not gpu and not vllm"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -n auto -m "not gpu and not vllm" --hypothesis-profile=thorough

# One process: the load takes the cores.
test-chance: $(VENV)/.dev
	$(BIN)/pytest -q -m "chance and not slow and not gpu and not vllm" --turns $(or $(TURNS),50) --within $(or $(WITHIN),3600)

# vLLM wants other versions than constraints.txt has: an environment of its own, made once.
VLLM ?= .venv-vllm

$(VLLM)/.made: tests/vllm/environment.sh
	sh tests/vllm/environment.sh $(VLLM)
	@touch $@

# Tests of the API that ask the servers which all of them share.
SERVED_BY_VLLM := official_clients.py anthropic_client.py documented_requests.py guarded_answers.py \
	hostile_schemas.py long_texts.py

test-vllm: $(VLLM)/.made
	$(VLLM)/bin/python -m pytest -q -m vllm tests/vllm
	$(VLLM)/bin/python -m pytest -q -m vllm -p tests.vllm.v2_runner tests/vllm/test_parity.py tests/vllm/test_start.py \
		-k "adapter or not two and (llama or gemma3_text or qwen2_vl)"
	$(VLLM)/bin/python -m pytest -q --served-by vllm $(addprefix tests/end_to_end/test_,$(SERVED_BY_VLLM))

CLIENTS ?= .cache/clients

test-clients: $(VENV)/.dev
	CLIENTS=$(CLIENTS) $(BIN)/python -m tests.clients

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto -m "not slow and not gpu and not vllm"

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.fitting

bench-vllm: $(VLLM)/.made
	$(VLLM)/bin/python -m benchmarks --only guard-vllm --vllm $(VLLM)/bin/vllm

demo-model: $(VENV)/.dev
	$(BIN)/python -m models.demo.train --out runs/demo-model

demo-guard: $(VENV)/.dev
	$(BIN)/python -m steering.fitting.demo_data --out runs/demo-pairs
	$(BIN)/autosteer fit --model models/demo/checkpoint --pairs runs/demo-pairs/pairs.jsonl \
		--benign runs/demo-pairs/benign.jsonl --reader last --answers --judge demo --answer-tokens 64 --batch 64 --no-categories \
		--out models/demo/guard --work runs/demo-work --report runs/demo-report

demo-table: $(VENV)/.dev
	$(BIN)/autosteer eval --model demo --suite demo --out runs/demo-table

real-model: $(VENV)/.real
	@$(BIN)/python -m models.smollm2 --out runs/smollm2

data-is-given:
	@test -d "$(DATA)" || { echo "make real-guard DATA=FOLDER: where the public sets of docs/real-model.md are"; exit 2; }

# Interrupted, each step goes on where it was.
real-guard: data-is-given real-model $(VENV)/.dev
	$(BIN)/python -m steering.fitting.public_data --data "$(DATA)" --out runs/real-data
	$(BIN)/autosteer fit --model runs/smollm2 --pairs runs/real-data/pairs.jsonl --benign runs/real-data/benign.jsonl \
		--hard-negatives runs/real-data/hard.jsonl --target-fpr 0.05 --no-categories --out runs/real-guard
	$(BIN)/autosteer eval --model runs/smollm2 --guard runs/real-guard --suite runs/real-data/suite.yaml \
		--surroundings words --modes original,autosteer --no-cost --out runs/real-eval
	@$(BIN)/autosteer serve --model runs/smollm2 --guard runs/real-guard $(call option,HOST,host) $(call option,PORT,port)

clean:
	rm -rf $(VENV) .venv-vllm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
