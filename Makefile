# Two commands need no other step: `make quickstart` and `make test`. Each sets up .venv the first time only.
# pip takes torch 2.13.0 (constraints.txt) from wherever it is configured to look; on Linux the default build brings
# several GB of CUDA. For the CPU build, point pip at PyTorch's CPU index first (PIP_EXTRA_INDEX_URL or pip.conf).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONUTF8 = 1

.PHONY: help quickstart study eval parser demo test lint format browser install clean
help:
	@echo "make quickstart  diagnose, SFT, GRPO and report on the embedded data and model (minutes, no GPU needed)"
	@echo "make study       the quickstart under three seeds, put together into docs/results/quickstart.json"
	@echo "make eval        1,000 embedded questions to RUN=$(RUN), with and without the image: docs/results/eval.md"
	@echo "make parser      a million random texts through every profile of the parser, and its speed: docs/results/parser.json"
	@echo "make demo        ask the models of RUN=$(RUN) in a browser"
	@echo "make test        ruff, pyright and pytest;  make lint  without pytest;  make format  rewrites"
	@echo "make clean       remove caches and builds (not $(VENV), not runs/)"

install: $(VENV)/.installed $(VENV)/trl-upper/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) must be \
	Python 3.11 or newer; name another with: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) has no venv module; \
	on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV), once; this takes one to three minutes"
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

# The upper end of the TRL range, for tests/test_trl_range.py. Alone in a folder of its own, without -c: constraints.txt
# pins the lower end, whose other packages serve both.
$(VENV)/trl-upper/.installed: tests/trl-upper.txt | $(VENV)/.installed
	rm -rf $(@D)
	PIP_CONSTRAINT= $(BIN)/pip install -q --no-deps --target $(@D) -r $<
	@touch $@

# --overwrite replaces a run of ours in that directory, and nothing else.
quickstart: $(VENV)/.installed
	$(BIN)/lite-medrl run examples/quickstart.yaml --output_dir runs/quickstart --overwrite

# The quickstart under three seeds, put together: the figures in README.md.
SEEDS ?= 0 1 2
study: $(VENV)/.installed
	for seed in $(SEEDS); do $(BIN)/lite-medrl run examples/quickstart.yaml seed=$$seed \
		--output_dir runs/study/seed$$seed --overwrite || exit 1; done
	$(BIN)/lite-medrl pool $(foreach seed,$(SEEDS),runs/study/seed$(seed)) --output docs/results/quickstart.json

# 1,000 embedded questions to the quickstart's last model, with its image, a grey one and another one.
eval: $(VENV)/.installed
	$(BIN)/lite-medrl eval $(RUN) --limit 1000 --output_dir evals/quickstart --overwrite
	cp evals/quickstart/results.json docs/results/eval.json
	cp evals/quickstart/results.md docs/results/eval.md

parser: $(VENV)/.installed
	$(BIN)/python tests/fuzz_parser.py --output docs/results/parser.json

demo: $(VENV)/.installed
	$(BIN)/lite-medrl demo $(RUN)

test: install lint browser
	$(BIN)/pytest -q

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The demo's test opens a real browser. Root on Debian gets one here; elsewhere the test is skipped (under CI it fails).
browser: $(VENV)/.installed
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing chromium for the browser test"; export DEBIAN_FRONTEND=noninteractive; \
		{ timeout 300 apt-get update -qq && timeout 900 apt-get install -y -qq chromium; } >/dev/null \
			|| echo "chromium could not be installed; the browser test cannot run"; \
	else echo "no chromium here: the browser test will be skipped"; fi

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find lite_medrl kernels tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
