# Needs make, Python 3.10-3.13 with pip, and a C compiler. "make help" lists the targets.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
STORAGE := runs
DEMO := jobs/recipes/menagerie-demo.yaml
PORT ?= 5000
# Recipes read it as "$$STORAGE": a path may hold whatever make or the shell would take for something else.
export STORAGE

.PHONY: help .venv clips demo test test-slow test-hpsv2 bench lint types format ui cluster cluster-stop constraints clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[.a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([.a-z0-9-]+):.*## */  make \1\t/' | expand -t 22

.venv: $(READY)  ## make or renew the environment (about 7 GB)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10-3.13 found: install one, or name it: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@case "$$PWD" in *%*) echo "error: MLflow opens no database where it is installed below a folder with % in its name: $$PWD; move this one" >&2; exit 1;; esac
	@echo "Making .venv with $$("$(PYTHON)" --version) (some minutes the first time)"
	@# Some distributions ship Python without ensurepip; there the machine's pip puts one into .venv.
	"$(PYTHON)" -m venv .venv || { "$(PYTHON)" -m venv --without-pip .venv && "$(PYTHON)" -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install $(if $(CI),--quiet) --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clips: $(READY)  ## draw the menagerie's clips, which its recipes name; those already there are kept
	$(BIN)/python -m rayvideo.menagerie.clips --out "$$STORAGE"/menagerie/clips

demo: RUN := demo-$(shell date +%Y%m%d-%H%M%S)
demo:  ## the whole way on the embedded default: clips, latents, fine-tuning, comparison
	@echo "Five and a half minutes on two cores without bf16, after an environment of 7 GB the first time: clips are drawn and encoded, a"
	@echo "small model learns 20 steps from a judge, and its clips are compared with those from before, in a report."
	@$(MAKE) --no-print-directory clips
	$(BIN)/python jobs/demo.py --recipe $(DEMO) tracking.run_name=$(RUN)

test: lint types  ## everything that must pass: ruff, mypy, all tests but the slow ones
	$(BIN)/python -m pytest -q --durations=20

test-slow: $(READY)  ## the tests that take minutes each: runs that are killed, clusters that grow and shrink
	$(BIN)/python -m pytest -q -m slow --durations=10

test-hpsv2: .venv-hpsv2/.ready  ## HPSv2 against its official code, in an environment of its own (about 7 GB more)
	.venv-hpsv2/bin/python -m pytest -q -rs tests/rewards/test_hpsv2_parity.py

bench: $(READY)  ## the short benchmarks; fails if a ratio is worse than the committed one (five minutes, nothing beside it)
	$(BIN)/python -m benchmarks.bench

.venv-hpsv2/.ready: pyproject.toml $(READY)
	$(BIN)/uv venv --clear --python $(BIN)/python .venv-hpsv2
	$(BIN)/uv pip install --python .venv-hpsv2/bin/python --editable '.[hpsv2]'
	@touch $@

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(READY)  ## open the runs in MLflow, on this machine only
	database=$$($(BIN)/python -m rayvideo.tracking "$$STORAGE") && \
		$(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --backend-store-uri "$$database"

cluster: $(READY)  ## start a Ray cluster and MLflow on this machine, to submit jobs to (docs/clusters.md)
	cluster/local.sh start

cluster-stop:  ## end them
	cluster/local.sh stop

constraints: $(READY)  ## resolve constraints.txt anew, keeping its versions where they still fit
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --no-annotate \
		--custom-compile-command "make constraints" --output-file constraints.txt

clean:  ## remove environment and caches; runs/ stays
	rm -rf .venv .venv-hpsv2 .mypy_cache .ruff_cache .pytest_cache *.egg-info
