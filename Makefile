# One command does everything from a bare clone: `make demo`, `make test`, `make lab`.
# Each makes .venv when it is missing, once; after that nothing here needs a network.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help demo test lab bench soak book clean
help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version): Python 3.11 or newer is needed; call make with PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,lab,dist,dev]'
	@touch $@

demo: $(STAMP)   ## train the toy, project the 744B model on 100,000 chips, write runs/demo/report.html
	$(BIN)/minglm demo $(ARGS)
	$(BIN)/clustersim report runs/demo

test: $(STAMP)   ## every test, every notebook in smoke mode
	$(BIN)/python -m pytest $(ARGS)

lab: $(STAMP)    ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks/learn/00_start_here.ipynb $(ARGS)

bench: $(STAMP)  ## performance ratios, side by side in one run; ONLY=name for one
	$(BIN)/minglm bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

soak: $(STAMP)   ## the long checks: 10,000 generated scenarios
	MINGLM_SOAK=1 $(BIN)/python -m pytest tests/property $(ARGS)

book: $(STAMP)   ## executed HTML book of the notebooks, in runs/book
	$(BIN)/python -m minglm.book

clean:           ## remove the virtual environment and all runs
	rm -rf $(VENV) runs *.egg-info
