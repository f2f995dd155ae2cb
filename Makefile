# One command does everything from a bare clone: `make demo`, `make test`, `make lab`.
# Each makes .venv when it is missing, once; after that nothing here needs a network.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# How many processes run tests side by side; 0 for this one alone, whose output is not held back.
MINGLM_TEST_WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(MINGLM_TEST_WORKERS) --dist loadgroup --no-loadscope-reorder
SEED   ?= $(shell date +%s)

.PHONY: help demo test check lab bench bench-gpu drills soak mutants course-check hub-check checkpoints book lite lock-check test-mindspore clean
help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(STAMP): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version): Python 3.11 or newer is needed; call make with PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,lab,dist,dev]'
	@touch $@

demo: $(STAMP)   ## train the toy, project the 744B model on 100,000 chips, write runs/demo/report.html
	$(BIN)/minglm demo $(ARGS)
	$(BIN)/clustersim report runs/demo

test: $(STAMP)   ## every test, every notebook in smoke mode
	$(PYTEST) $(ARGS)

# What every room stands on; FOLDERS adds those of the rooms that a change touches.
FOUNDATIONS = tests/house tests/sim/base tests/sim/spec tests/sim/cost tests/minglm/model

check: $(STAMP)  ## before a commit, in two minutes: lint, format, types, rooms, fast tests of the foundations; FOLDERS="tests/sim/rollout" for more
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow" --deselect tests/house/test_style.py::test_types $(FOUNDATIONS) $(FOLDERS) $(ARGS)

lab: $(STAMP)    ## open the notebooks in JupyterLab
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab --ServerApp.root_dir=. --ServerApp.terminado_settings="{'shell_command': ['$${SHELL:-/bin/sh}']}" --LabApp.app_settings_dir=notebooks/workshop/lab notebooks/learn/00_start_here.ipynb $(ARGS)

bench: $(STAMP)  ## performance ratios, side by side in one run; ONLY=name for one
	$(BIN)/minglm bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

bench-gpu: $(STAMP) ## the accelerator's bench; says so and stops where there is none
	$(BIN)/minglm bench --only gpu $(ARGS)

drills: $(STAMP) ## 40 faults at random moments: kills, disks, clocks, two writers; a table in runs/fault_injection
	$(BIN)/python -m minglm.tools.fault_injection $(ARGS)

soak: $(STAMP)   ## the long checks: 10,000 generated examples a file, 64 clients on the server for two minutes (needs runs/demo)
	MINGLM_SOAK=1 $(PYTEST) --timeout 14400 --hypothesis-seed=$(SEED) tests/property
	$(BIN)/python -m minglm.serving.load_test --clients 64 --seconds 120 $(ARGS)

mutants: $(STAMP) ## plant 122 single faults in a copy of the code, one at a time: does a test see each? ARGS=rl/ for a part, --automatic for a sample
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(ARGS)

course-check: $(STAMP) ## the whole book, every exercise both ways, single faults of its solution, the site, all walks in a browser
	$(BIN)/python -m minglm.course.book --record data/reference/last_runs
	$(BIN)/python -m minglm.course.workshop.single_faults
	MINGLM_COURSE=1 $(BIN)/python -m pytest tests/minglm/course/test_workshop_exercises.py tests/minglm/course/test_workshop_kit.py tests/browser $(ARGS)

hub-check: $(STAMP) ## three learners on a real JupyterHub: copies, three notebooks, memory; needs npm (asks the package registries)
	@command -v npm >/dev/null || { echo "npm is missing: install Node.js, whose package registry has the hub's proxy"; exit 2; }
	test -x .venv-hub/bin/jupyterhub || { $(PYTHON) -m venv .venv-hub && .venv-hub/bin/python -m pip install --quiet --disable-pip-version-check "jupyterhub==6.*" "jupyterlab==4.*"; }
	test -x .venv-hub/node_modules/.bin/configurable-http-proxy || npm install --silent --prefix .venv-hub "configurable-http-proxy@5"
	$(BIN)/python -m minglm.course.workshop.hub --hub .venv-hub $(ARGS)

checkpoints: $(STAMP) ## small results that any notebook can start from, with their hashes
	$(BIN)/minglm workshop checkpoints $(ARGS)

book: $(STAMP)   ## executed HTML book of the notebooks, in runs/book
	$(BIN)/python -m minglm.course.book

lite: $(STAMP)   ## the planner page as a site for a browser with nothing installed, in runs/lite
	$(BIN)/python -m sim.dashboard.lite

lock-check: $(STAMP) ## the pins, resolved for Python 3.11.2 to 3.14 on Linux, macOS and Windows (asks the package registry)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	MINGLM_LOCK=1 $(BIN)/python -m pytest -s tests/house/test_lock.py $(ARGS)

test-mindspore: $(STAMP) ## the MindSpore twin against the torch model; 2.8 GB into .venv-mindspore (Python 3.11 or older)
	test -x .venv-mindspore/bin/python || $(PYTHON) -m venv .venv-mindspore
	.venv-mindspore/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-mindspore.txt
	$(BIN)/python tests/mindspore_twin/write_reference.py runs/mindspore-reference
	PYTHONPATH=. .venv-mindspore/bin/python -m pytest -c /dev/null --rootdir=. -q tests/mindspore_twin $(ARGS)

clean:           ## remove the virtual environment and what was built; runs stay
	rm -rf $(VENV) .venv-mindspore .venv-hub build *.egg-info
