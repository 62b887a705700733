# make demo: set up and run the default study; make test: set up and run the tests.
# PYTHON is the interpreter the virtual environment VENV is made from (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
CORES ?= all
BIN := $(VENV)/bin
# the shell says where this is: the folder's name may have spaces and quotes
WITH = PATH="$$(cd $(BIN) && pwd):$$PATH"

# set in many containers; without byte code every job would compile its libraries anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env demo report test cluster lint bench clean

help:
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/'

env: $(BIN)/.installed ## the virtual environment, from the pinned constraints

# Every file but torch's is compared with its digest. The second line builds this project and adds
# torch, of which the index says which build is meant, and what another system or Python needs more.
# pip is silent while it unpacks: say how far it is. --no-compile leaves byte code to first use.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --progress-bar off
$(BIN)/.installed: constraints-hashed.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamgauge needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@( while sleep 5; do echo "  installing: $$(ls $(VENV)/lib/python3*/site-packages | grep -c dist-info) of 172 packages"; done ) & \
	trap "kill $$!" EXIT; \
	$(PIP) --no-deps --require-hashes -r constraints-hashed.txt && \
	$(PIP) -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

demo: env ## run the default study and write its report
	$(WITH) snakemake --cores $(CORES)
	@$(MAKE) --no-print-directory report

report: env
	$(WITH) snakemake --cores 1 --report results/report.html --quiet all
	@echo
	@echo "report:  $$PWD/results/report.html"
	@echo "table:   $$PWD/results/studies/demo/grid.csv"
	@echo "figures: $$PWD/results/studies/demo/figures/"
	@echo "look inside any artifact: $(BIN)/streamgauge inspect PATH"

test: env ## run the tests
	$(WITH) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

# the SLURM cluster, which mostly waits, beside all the others
cluster: env ## run the tests that take minutes: a SLURM cluster, kills, upgrades
	$(WITH) OMP_NUM_THREADS=1 python -m pytest -m cluster -rs -n 2 --dist loadfile \
		--no-loadscope-reorder tests/end_to_end/test_slurm.py tests/*/test_*.py

lint: env ## ruff, and snakemake's lint on the hints we accept
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(WITH) python tests/snakemake_lint.py

bench: env ## speed as ratios, into docs/performance.md
	$(WITH) python benchmarks/run.py

clean: ## remove the results and logs of runs
	rm -rf results logs .snakemake
