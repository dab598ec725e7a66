# make repro: everything from the images to the report, JOBS=2 with two runs at a time;
# make test, make check; make ui, make exps.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)
# all but the experiment, mean accuracies, learning rates, margins, what is compared and the budget
EXP_COLUMNS = (?!Experiment|.*accuracy\.mean|methods\..*\.(lr|margin_different)$$|compare\.(shots|seeds|budget)$$).*
.DEFAULT_GOAL := repro
.PHONY: repro env test check format lock ui exps prune config bench torture

$(VENV)/installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

env: $(VENV)/installed

repro: env
	@python -m pipeline.check
	@pull="dvc pull$$(grep -qs 'remote: embedded' data.dvc && echo ' --remote embedded') data.dvc"; test -e data || $$pull --quiet \
	  || { echo "error: data.dvc: its images could not be fetched; '$$pull' says why" >&2; exit 1; }
	@python -m pipeline.plan $(if $(JOBS),--jobs '$(JOBS)')
	@$(if $(JOBS),python -m pipeline.jobs '$(JOBS)',python -m pipeline.repro)
	@python -m pipeline.report.summary

test: env
	python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: env
	ruff format --check .
	ruff check .
	mypy

format: env
	ruff format .
	ruff check --fix .

# names and versions alone, for every platform; needs uv on the PATH
lock:
	uv pip compile --universal --python-version 3.11 --quiet --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --upgrade --group dev pyproject.toml --output-file requirements.lock

torture: env
	python -m pytest -n logical --maxprocesses 4 --dist worksteal -m torture

bench: env
	python -m benchmarks.bench

ui: env
	@python -m pipeline.tracking.ui $(PORT)

exps: env
	@dvc exp show --no-pager --drop '$(EXP_COLUMNS)'

prune: env
	@python -m pipeline.prune

config: env
	@python -m pipeline.configure $(NAME)
