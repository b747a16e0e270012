# Everything sets itself up: a virtual environment in .venv, packages pinned by constraints.txt, torch's CPU build first.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow check mutate bench bench-family bench-speed docs clean

# Train on the built-in digits, measure, and write a picture and a report.
demo: .venv/.core
	$(BIN)/flowmaps train digits

# The fast suite, under five minutes on two cores.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

# The rest of the suite.
test-slow: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m slow

# Lint, format, types, the house rules (layers, sizes, docstrings, import time).
check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_layers.py

# Break each method on purpose and show that a test notices.
mutate: .venv/.dev
	$(BIN)/python tests/mutate.py

# The tables of benchmarks/ anew; hours on two cores.
bench: bench-family
	$(BIN)/python benchmarks/residuals.py
	$(BIN)/python benchmarks/tolerance.py
	$(BIN)/python benchmarks/likelihood.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/cost.py --net dit --compile --losses psd,mean_flow,lsd
	$(BIN)/python benchmarks/cost.py --net unet --compile --losses psd,mean_flow,lsd
	$(BIN)/python benchmarks/checkerboard.py
	$(BIN)/flowmaps bench samplers
	$(BIN)/flowmaps bench training
	$(BIN)/python benchmarks/data_prediction.py
	$(BIN)/python benchmarks/effects.py
	$(BIN)/python benchmarks/systems.py
	$(BIN)/python benchmarks/rings.py
	$(BIN)/python benchmarks/accelerators.py

# Every loss at equal seconds and at equal images, and some for a minute.
bench-family: .venv/.core
	$(BIN)/flowmaps bench family --seconds 10 --images 400000 --data checkerboard,eight_gaussians,mixture_64,digits
	$(BIN)/flowmaps bench family --seconds 60 --seeds 1 --out benchmarks/one_step \
		--data two_gaussians,eight_gaussians,eight_gaussians_wide --methods lsd,mean_flow,psd,lmd,one_step_distillation

# Beside the libraries of the field, in an environment of their own.
bench-speed: .venv-speed/.ready
	OMP_NUM_THREADS=1 .venv-speed/bin/python benchmarks/speed.py

docs: .venv/.docs
	$(BIN)/python docs/methods.py
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build
	@echo docs/_build/index.html

.venv/.python:
	$(PYTHON) -m venv .venv
	touch $@

.venv/.core: .venv/.python pyproject.toml constraints.txt
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .
	touch $@

.venv/.dev: .venv/.core
	$(INSTALL) --editable ".[dev]"
	touch $@

.venv/.docs: .venv/.core
	$(INSTALL) --editable ".[docs]"
	touch $@

.venv-speed/.ready: benchmarks/speed/requirements.txt
	$(PYTHON) -m venv .venv-speed
	.venv-speed/bin/pip install --quiet torch==2.13.0
	.venv-speed/bin/pip install --quiet --requirement benchmarks/speed/requirements.txt --editable .
	.venv-speed/bin/pip uninstall --quiet --yes torchvision  # not needed, and made for another build of torch
	touch $@

clean:
	rm -rf .venv .venv-speed docs/_build docs/methods
