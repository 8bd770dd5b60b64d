# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python
export CUDA_MODULE_LOADING := LAZY

.PHONY: help setup pose-tools demo test lint fit bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: .venv/.ready ## create .venv with everything pinned

.venv/.ready: setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --upgrade pip setuptools wheel
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# mediapipe pins versions that nothing else can live with, so its own pins are passed over
pose-tools: setup ## landmark models for photos (mediapipe 0.10.21, Apache-2.0): pose-maps, faces, try-on from a photo
	$(PY) -m pip install -q 'protobuf>=6,<7' absl-py attrs flatbuffers matplotlib
	$(PY) -m pip install -q --no-deps mediapipe==0.10.21

test: setup ## the whole fast test suite
	$(PY) -m pytest -n 2

lint: setup ## style and types
	$(PY) -m ruff check . && $(PY) -m mypy

demo: runs/demo/model/model_index.json ## train a tiny model on eight drawn records, show its pictures
	$(PY) -m omfa.demo --model runs/demo/model --records data/figures --out outputs/demo

data/figures/metadata.jsonl: | setup
	$(PY) -m tests.figures data/figures

runs/demo_vae/model/config.json: | data/figures/metadata.jsonl
	$(PY) -m omfa.fit --config lightning_configs/demo_vae.yaml --ckpt_path last

runs/demo/model/model_index.json: | runs/demo_vae/model/config.json
	$(PY) -m omfa.fit --config lightning_configs/demo.yaml --ckpt_path last

bench: runs/demo_vae/model/config.json ## what loading, training and sampling cost on this machine
	$(PY) -m omfa.bench --config lightning_configs/demo.yaml

fit: setup ## train: make fit ARGS="--config lightning_configs/tiny.yaml"
	$(PY) -m omfa.fit $(ARGS)

clean: ## remove what can be made again
	rm -rf .venv build outputs *.egg-info
