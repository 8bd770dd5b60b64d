# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python
export CUDA_MODULE_LOADING := LAZY
# mediapipe pins versions that nothing else can live with, so its own pins are passed over
POSE_TOOLS := $(PY) -m pip install -q 'protobuf>=6,<7' absl-py attrs flatbuffers matplotlib && \
	$(PY) -m pip install -q --no-deps mediapipe==0.10.21
# gradio says pillow<13 and works with 13: it is installed with what it needs, that pin passed over
APP_TOOLS := $(PY) -m pip install -q -c constraints.txt brotli fastapi httpx groovy orjson pandas pydub python-multipart \
	pytz semantic-version starlette tomlkit uvicorn mcp && \
	$(PY) -m pip install -q -c constraints.txt --no-deps gradio gradio-client hf-gradio safehttpx

.PHONY: help setup pose-tools demo test lint app fit compact bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: .venv/.ready ## create .venv with everything pinned

.venv/.ready: setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --upgrade pip setuptools wheel
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	$(APP_TOOLS)
	$(POSE_TOOLS) || echo 'photos go without a body for now: try "make pose-tools" again'
	touch $@

pose-tools: setup ## landmark models for photos again, where setup could not fetch them (mediapipe 0.10.21, Apache-2.0)
	$(POSE_TOOLS)

test: setup ## the whole fast test suite
	$(PY) -m pytest -n 2

lint: setup ## style and types
	$(PY) -m ruff check . && $(PY) -m mypy

demo: data/demo/metadata.jsonl ## garments off people and onto others, by the model that ships: outputs/demo
	$(PY) -m omfa.demo --records data/demo --out outputs/demo

data/demo/metadata.jsonl: | setup
	$(PY) -m data_prep synthetic --records 16 --seed 77 --out data/demo --workers 2

bench: data/demo/metadata.jsonl ## what loading, training and sampling cost on this machine
	$(PY) -m omfa.bench --records data/demo

app: setup ## the page in a browser: make app ARGS="--port 7860"
	$(PY) -m omfa.app $(ARGS)

fit: setup ## train: make fit ARGS="--config lightning_configs/tiny.yaml"
	$(PY) -m omfa.fit $(ARGS)

compact: setup ## the compact model from nothing, in so many minutes: make compact MINUTES=60
	$(PY) -m omfa.from_nothing --minutes $(or $(MINUTES),60) $(ARGS)

clean: ## remove what can be made again
	rm -rf .venv build outputs *.egg-info
