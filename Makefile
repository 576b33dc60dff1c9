# Paragone. `make help` lists the targets; every target sets up what it needs.
#
# Any of these may hold spaces. Variables: PRESET=tiny|small|paper|real|any other of the page's  DATA=<data set or shards>  TEST=<other data set to evaluate on>  SEED=0  DEVICE=auto|cpu|cuda
#            WEIGHTS=<published weights to start from, or to evaluate as they are>  OUT=<run folder>
#            ARGS="--optim.lr 1e-3" (training)  TASKS=zeroshot,retrieval  EVAL_ARGS="--limit 500"  SEEDS=0,1,2 (claims)
#            RUNS=.runs (make demo)  FORMAT=transformers (of an export)  PLANTED=0.9 (a correlation in the embedded data set)  BY=clip,duplicates SHARE=0.3 CLIP=<run> (make filter)
#            VENV=.venv  PYTHON=python3  TORCH_INDEX=<index of torch wheels>

VARIABLES := PRESET DATA TEST SEED DEVICE WEIGHTS OUT ARGS FORMAT IMAGE PLANTED TASKS EVAL_ARGS SEEDS RUNS BY SHARE CLIP VENV PYTHON TORCH_INDEX
# Make expands what it is given: without this, the value a$$b would be a.
$(foreach name,$(VARIABLES),$(if $(filter command environment,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
# ARGS are words of the shell, which has its own use for the sign. Rules are lines, and split at some signs.
$(foreach name,ARGS EVAL_ARGS,$(if $(findstring $$,$($(name))),$(error $(name) holds a dollar sign, which the shell would expand: run the command itself, as make shows it, with quotes of your own)))
define NEWLINE


endef
$(foreach name,$(VARIABLES),$(if $(findstring $(NEWLINE),$($(name))),$(error $(name) holds a line break: expected one line)))
VENV ?= .venv
$(foreach sign,: ; |,$(if $(findstring $(sign),$(VENV)),$(error VENV is $(VENV): make cannot use a path with $(sign) in it)))
PYTHON ?= python3
PRESET ?= tiny
SEED ?= 0
DEVICE ?= auto
RUNS ?= .runs
SIZE := $(if $(findstring small,$(PRESET)),small,tiny)
SCENES := .data/scenes-$(SIZE)$(if $(PLANTED),-planted$(PLANTED))
# The data set that a preset trains on by default.
USUAL := $(if $(filter real,$(PRESET)),.data/openmoji,.data/scenes-$(SIZE))
DATA ?= $(if $(filter real,$(PRESET)),openmoji,$(SCENES))
ifeq ($(DATA),openmoji)
override DATA := .data/openmoji
endif
POOL := .data/pool-$(SIZE)
ifeq ($(DATA),pool)
override DATA := $(POOL)
endif
PAGES_SET := .data/pages-$(SIZE)
ifeq ($(DATA),pages)
override DATA := $(PAGES_SET)
endif
SEVERAL := .data/several-$(SIZE)
ifeq ($(DATA),several)
override DATA := $(SEVERAL)
endif
TEST ?= $(DATA)
# Make's functions split at spaces: they get a text without any, and what they return has them again.
SPACE := $(subst ,, )
solid = $(subst $(SPACE),__space__,$(1))
spaced = $(subst __space__,$(SPACE),$(1))
# One word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
# A run is named after its data: the folder's name, also when DATA is a pattern of tars in it.
NAMED = $(call solid,$(DATA))
PLACE = $(if $(findstring .tar,$(NAMED)),$(dir $(NAMED)),$(NAMED))
ON = $(if $(filter $(USUAL),$(NAMED)),,-$(call spaced,$(notdir $(PLACE:%/=%))))
RUN = $(or $(OUT),.runs/$*-$(PRESET)$(ON)-s$(SEED))
NAME = $(call quoted,$*)
RUN_QUOTED = $(call quoted,$(RUN))
WHERE = --data $(call quoted,$(DATA)) --device $(call quoted,$(DEVICE))
FINISHED = grep -qs '"finished": true' $(RUN_QUOTED)/cost.json

# No paper was trained on the embedded data set, so PRESET=paper uses it only if DATA= names it.
ifeq ($(PRESET)/$(origin DATA),paper/file)
ifneq ($(filter train-%,$(MAKECMDGOALS)),)
$(error PRESET=paper needs data of the paper's kind: name your shards with DATA=, or the embedded data set with DATA=$(SCENES))
endif
endif

# Every page of recipes/ that declares PRESETS can be trained; COMPARED leaves out what is trained only for others to build on.
PAGES := $(basename $(notdir $(shell grep -l '^PRESETS' recipes/*.py)))
COMPARED := $(filter-out $(basename $(notdir $(shell grep -l '^COMPARED = False' recipes/*.py))),$(PAGES))
# The pages whose presets train on interleaved pictures and texts: for these that is the usual data set.
INTERLEAVED := $(basename $(notdir $(shell grep -l '"\.data/pages-' recipes/*.py)))
ON_PAGES := $(foreach page,$(INTERLEAVED),$(foreach what,train eval claims time plan export chat,$(what)-$(page)))
ifneq ($(ON_PAGES),)
$(ON_PAGES): USUAL = $(PAGES_SET)
ifeq ($(origin DATA),file)
$(ON_PAGES): DATA = $(PAGES_SET)
$(ON_PAGES): $(PAGES_SET)
endif
endif
PY = $(call quoted,$(VENV)/bin/python)
READY := $(subst $(SPACE),\ ,$(VENV))/.paragone
# Let glibc keep freed memory for reuse instead of returning it to the system, which speeds up training and image generation on a CPU.
# 32 MiB is the largest mmap threshold that glibc accepts.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 536870912
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed 's/%/<page>/' | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "  <page>: $(COMPARED); prerequisites, trained automatically: $(filter-out $(COMPARED),$(PAGES))"
	@echo "  Variables: $(VARIABLES) (see the top of the Makefile)"

train-%: $(READY) data ## train the model of a page, or resume training
	$(PY) -m recipes.train $(NAME) $(call quoted,$(PRESET)) --out $(RUN_QUOTED) $(WHERE) --seed $(call quoted,$(SEED)) $(if $(WEIGHTS),--weights $(call quoted,$(WEIGHTS))) $(ARGS)

# `make eval-clip WEIGHTS=...` evaluates the weights themselves, `make train-clip eval-clip WEIGHTS=...` what training made of them.
AS_THEY_ARE = $(if $(filter train-%,$(MAKECMDGOALS)),,$(WEIGHTS))

eval-%: $(READY) data ## evaluate a trained model, or WEIGHTS=, on all tasks that it supports
	@test -n $(call quoted,$(AS_THEY_ARE)) || $(FINISHED) || $(MAKE) --no-print-directory $(call quoted,train-$*)
	$(PY) -m eval.run $(call quoted,$(or $(AS_THEY_ARE),$(RUN))) --data $(call quoted,$(TEST)) --device $(call quoted,$(DEVICE)) $(if $(TASKS),--tasks $(call quoted,$(TASKS))) $(EVAL_ARGS)

export-%: $(READY) ## write a trained model for another library: FORMAT=transformers|open_clip|timm|onnx
	$(PY) -m recipes.tools.export $(RUN_QUOTED) --format $(call quoted,$(or $(FORMAT),transformers)) $(ARGS)

chat-%: $(READY) data ## chat about one or more images with a trained model that replies: IMAGE=photo.jpg,other.jpg
	@test -n $(call quoted,$(IMAGE)) || { echo $(call quoted,name a picture: make chat-$* IMAGE=photo.jpg); exit 1; }
	@$(FINISHED) || $(MAKE) --no-print-directory $(call quoted,train-$*)
	$(PY) -m recipes.tools.chat $(RUN_QUOTED) $(call quoted,$(IMAGE)) --device $(call quoted,$(DEVICE)) $(ARGS)

demo: $(READY) data ## try all trained runs on your own picture, sentence and question, in the browser: RUNS=.runs, ARGS="--port 8000"
	@$(PY) -c 'import starlette, uvicorn' 2>/dev/null || $(PY) recipes/tools/install.py demo
	$(PY) -m recipes.demo --runs $(call quoted,$(RUNS)) --data $(call quoted,$(TEST)) --device $(call quoted,$(DEVICE)) $(ARGS)

claims-%: $(READY) data ## test a paper's claims as controlled experiments: SEEDS=0,1,2, ARGS="--only NAME"
	$(PY) -m recipes.claims $(NAME) --preset $(call quoted,$(PRESET)) $(WHERE) $(if $(SEEDS),--seeds $(call quoted,$(SEEDS))) $(ARGS)

time-%: $(READY) data ## estimate the training time on this machine from a few steps of each stage
	$(PY) -m recipes.tools.timing $(NAME) --preset $(call quoted,$(PRESET)) $(WHERE) --seed $(call quoted,$(SEED)) $(ARGS)

plan-%: $(READY) $(if $(findstring small,$(PRESET))$(findstring paper,$(PRESET)),,data) ## estimate what a training run costs: parameters, FLOPs, memory, disk space, time or GPU-hours
	$(PY) -m recipes.plan $(NAME) $(call quoted,$(PRESET)) $(WHERE) --seed $(call quoted,$(SEED)) $(if $(WEIGHTS),--weights $(call quoted,$(WEIGHTS))) $(ARGS)

compare: $(READY) ## compare all evaluated runs: terminal, Markdown, CSV, HTML
	$(PY) -m eval.compare --pages "$(COMPARED)" $(if $(filter-out $@,$(MAKECMDGOALS)),,$(ARGS))

picture: $(READY) ## take a screenshot of the report's first screen: ARGS="--out FILE.png --width 390" (needs chromium)
	$(PY) -m eval.report.picture --report .runs/compare/report.html $(or $(ARGS),--out .runs/compare/report.png)

all: $(foreach page,$(COMPARED),train-$(page) eval-$(page)) compare ## train, evaluate and compare every model

data: $(READY) ## generate the embedded data set or restore missing parts of it; DATA=openmoji|pool|pages|several: another one, see data/README.md
ifeq ($(DATA),.data/openmoji)
	@$(PY) -m data.importers openmoji
endif
ifeq ($(DATA),$(SCENES))
	@$(PY) -m data.scenes.build --preset $(SIZE) $(if $(PLANTED),--planted $(call quoted,$(PLANTED))) --out $(call quoted,$(SCENES))
endif

ifeq ($(DATA),$(PAGES_SET))
	@$(PY) -m data.scenes.pages --preset $(SIZE) --out $(call quoted,$(PAGES_SET))
endif

ifeq ($(DATA),$(SEVERAL))
	@$(PY) -m data.scenes.several --preset $(SIZE) --out $(call quoted,$(SEVERAL))
endif

ifeq ($(DATA),$(POOL))
	@$(PY) -m data.scenes.pool --preset $(SIZE) --out $(call quoted,$(POOL))
endif

$(PAGES_SET): $(READY)
	@$(PY) -m data.scenes.pages --preset $(SIZE) --out $(call quoted,$(PAGES_SET))

filter: $(READY) data ## list the samples of DATA= to keep: BY=clip|length|boilerplate|text|duplicates|blur|random|truth, or several; SHARE= CLIP= OUT=
	$(PY) -m recipes.filter $(call quoted,$(DATA)) --by $(call quoted,$(BY)) $(if $(SHARE),--share $(call quoted,$(SHARE))) $(if $(CLIP),--clip $(call quoted,$(CLIP))) $(if $(OUT),--out $(call quoted,$(OUT))) --device $(call quoted,$(DEVICE)) $(ARGS)

frontier: $(READY) data ## quality against compute: train every page, or ARGS="clip coca", with four budgets; prints an estimate of the time first, and resumes
	$(PY) -m recipes.frontier --preset $(call quoted,$(PRESET)) --seed $(call quoted,$(SEED)) $(WHERE) $(ARGS)

worlds: $(READY) data ## check whether the embedded data rank models and claims as DATA= does (required): trains every page, or ARGS="clip coca", and arms of its claims on both with an eighth of the budget; resumes
	@$(PY) -m data.scenes.build --preset $(SIZE) --out .data/scenes-$(SIZE)
	$(PY) -m recipes.worlds --preset $(call quoted,$(PRESET)) --seed $(call quoted,$(SEED)) $(WHERE) $(ARGS)

race: $(READY) data ## time to quality: seconds and TFLOP of every page, or ARGS="clip coca", to three marks; prints an estimate of the time first, and resumes
	$(PY) -m recipes.race --preset $(call quoted,$(PRESET)) --seed $(call quoted,$(SEED)) $(WHERE) $(ARGS)

filter-curve: $(READY) data ## train CLIP on filtered subsets of DATA=: quality at equal samples seen, by filter and by the share kept
	$(PY) -m recipes.filter.curve --preset $(call quoted,$(PRESET)) $(WHERE) $(if $(SEEDS),--seeds $(call quoted,$(SEEDS))) $(ARGS)

import: $(READY) ## import your own data: ARGS="auto|coco|folder|table|... --help"
	$(PY) -m data.importers $(ARGS)

check-data: $(READY) ## report what would be dropped from DATA=; writes a missing index.json (ARGS=--write-index rewrites it)
	$(PY) -m data.check $(call quoted,$(DATA)) $(ARGS)

calibrate: $(READY) data ## measure how much of the embedded data can be learned
	$(PY) -m recipes.tools.calibrate --data $(call quoted,$(DATA)) $(ARGS)

tune-%: $(READY) data ## tune a model's decoding on the val split, where recipes/tools/ has a tune_<page>.py: ARGS="--alpha 0,0.1"
	@test -f $(call quoted,recipes/tools/tune_$*.py) || { echo $(call quoted,recipes/tools/tune_$*.py is missing: nothing of $* can be tuned); exit 1; }
	@$(FINISHED) || $(MAKE) --no-print-directory $(call quoted,train-$*)
	$(PY) -m $(call quoted,recipes.tools.tune_$*) $(RUN_QUOTED) $(WHERE) $(ARGS)

params: $(READY) ## compare parameter counts with the papers: ARGS="clip siglip"
	$(PY) -m recipes.tools.params $(ARGS)

bench: $(READY) data ## measure speed relative to the reference libraries
	$(PY) -m recipes.bench $(WHERE) $(ARGS)

gpu: $(READY) ## run the checks and measurements that need a GPU: ARGS="--minutes 12"; --rehearse runs them on the CPU
	$(PY) -m recipes.gpu $(ARGS)

results: $(READY) ## write recipes/RESULTS.md and the README's table from recipes/results/; ARGS=collect updates these from .runs first
	$(PY) -m recipes.tools.results $(ARGS)

test: $(READY) ## run the tests (minutes on two cores)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: $(READY) ## run the slow tests
	$(PY) -m pytest -m slow $(ARGS)

stress: $(READY) ## inject faults for ten minutes: kills, broken files, concurrent processes, full disks: ARGS="--seconds 60 --seed 1"
	$(PY) -m tests.stress $(ARGS)

lint: $(READY) ## run ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean: ## remove runs and generated data, keep the environment
	rm -rf .runs .data/scenes-* .data/pool-* .data/pages-* .data/several-*

# torch and torchvision are asked for together, so that both come from one index and fit each other.
$(READY): pyproject.toml
	@$(call quoted,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(PY) || $(call quoted,$(PYTHON)) -m venv $(call quoted,$(VENV))
	$(PY) -m pip install $(if $(TORCH_INDEX),--index-url $(call quoted,$(TORCH_INDEX))) "torch>=2.11" "torchvision>=0.26"
	$(PY) recipes/tools/install.py
	@$(PY) -c 'import torch, torchvision' || { echo "torch and torchvision do not fit each other: remove "$(call quoted,$(VENV))" and choose their index with TORCH_INDEX="; exit 1; }
	touch $(call quoted,$@)

.PHONY: help demo compare picture all data $(PAGES_SET) filter filter-curve frontier worlds race import check-data calibrate params bench gpu results test test-slow stress lint clean
