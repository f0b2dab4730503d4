PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# The tests of a module share fixtures, so one worker runs all tests of a module.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadscope

.PHONY: test lint demo docs docs-output notebooks paper optimizers known-workloads benchmarks public-codes large-workloads scale slow kills no-torch lowest newest bare extras package clean

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" $(PARALLEL)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m numpydoc.hooks.validate_docstrings $(shell git ls-files 'trajstore/*.py' 'analyzers/*.py' 'train/*.py')

demo: .venv/installed
	rm -rf demo
	$(BIN)/traj-train run digits-resnet --out demo/run.zarr
	$(BIN)/traj-analyze geometry demo/run.zarr --layers

# The site; warnings are errors. ONLINE=1 also links to the pages of other projects.
docs: .venv/installed-docs
	TRAJSTORE_DOCS_ONLINE=$(ONLINE) OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/_ext/check_links.py docs/_build/html

# Writes the output of code into the pages that show it, and draws the picture of the README.
docs-output: .venv/installed
	$(BIN)/python docs/_ext/executed_pages.py

# Executes the notebooks in docs, and stores their outputs.
notebooks: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python docs/notebooks/execute.py

.venv/installed-docs: .venv/installed
	$(PIP) -c constraints.txt -e ".[docs]"
	touch $@

# Records the runs that runs/ lacks, and writes docs/paper.md; takes ten minutes.
paper: .venv/installed
	$(BIN)/traj-train sweep embedded --out runs
	$(BIN)/traj-analyze paper --stores runs --out docs

# What commands know of the workloads without importing torch.
known-workloads: .venv/installed
	$(BIN)/python -c "from train.workloads import catalogue, known; known.FILE.write_text(known.as_text(catalogue.known()))"

# Records the runs that runs-optimizers/ lacks, and writes docs/optimizers.md; takes five minutes.
optimizers: .venv/installed
	$(PIP) -c constraints.txt -e ".[optimizers]"
	$(BIN)/traj-train sweep optimizers-embedded --out runs-optimizers
	for run in runs-optimizers/*-[0-9].zarr; do $(BIN)/traj-train replay $$run || exit 1; done
	$(BIN)/traj-analyze optimizers --stores runs-optimizers --out docs

slow: .venv/installed
	$(BIN)/pytest -m "slow and not kills"

# Kills 1120 recordings, recoveries, analyses and replays at random moments.
kills: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -s -m kills $(PARALLEL)

benchmarks: .venv/installed
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/expected_errors.py
	$(BIN)/python benchmarks/bias.py
	$(BIN)/python benchmarks/measurements.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/planning_ends.py
	$(BIN)/python benchmarks/planning_parts.py
	$(BIN)/python benchmarks/planning_like.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/checks.py
	$(BIN)/python benchmarks/per_step.py
	$(BIN)/python benchmarks/first_recording.py
	$(BIN)/python benchmarks/small_steps.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/process_memory.py
	$(BIN)/python benchmarks/stalls.py
	$(BIN)/python benchmarks/analysis.py
	$(BIN)/python benchmarks/alpha_beta.py
	$(BIN)/python benchmarks/zigzag.py
	$(BIN)/python benchmarks/sharpness.py
	$(BIN)/python benchmarks/deep_linear.py
	$(BIN)/python benchmarks/tangent_kernel.py
	$(BIN)/python benchmarks/null_models.py
	$(BIN)/python benchmarks/excess.py

# Some twenty training codes of others, recorded and compared; torchvision needs the torch it was built for.
public-codes: .venv-codes/installed
	.venv-codes/bin/python benchmarks/public_codes

.venv-codes/installed: pyproject.toml benchmarks/public_codes/requirements.txt
	test -x .venv-codes/bin/python || $(PYTHON) -m venv .venv-codes
	.venv-codes/bin/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	.venv-codes/bin/pip install --quiet --disable-pip-version-check -e ".[all,integrations]" -r benchmarks/public_codes/requirements.txt
	touch $@

# Takes half an hour on 2 cores and 12 GB of memory.
large-workloads: .venv/installed
	$(BIN)/python benchmarks/large_workloads.py

# Takes hours and about 15 GB of disk; scale.py has options for smaller sizes.
scale: .venv/installed
	$(BIN)/python benchmarks/scale.py

# Install torch first and alone: together with other packages, pip fetches its CUDA build.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e ".[all,integrations,triton,test,lint]"
	touch $@

no-torch: .venv-no-torch/installed
	OMP_NUM_THREADS=1 .venv-no-torch/bin/pytest -m "not slow" $(PARALLEL)

.venv-no-torch/installed: pyproject.toml
	test -x .venv-no-torch/bin/python || $(PYTHON) -m venv .venv-no-torch
	.venv-no-torch/bin/pip install --quiet --disable-pip-version-check -e ".[analyze,test]"
	touch $@

# Environments with the lowest and the newest versions of all dependencies, with none of the
# extras, and with each extra alone. Without SMOKE_TORCH, nothing is recorded in them.
SMOKE_PYTHON ?= 3.11
SMOKE_TORCH ?= torch==2.13.0

lowest newest bare extras:
	$(PYTHON) tests/smoke/environments.py $@ --python $(SMOKE_PYTHON) --torch "$(SMOKE_TORCH)" $(if $(SMOKE_RECORD),--record)

# Builds the distribution and checks its metadata and contents.
package:
	rm -rf dist
	uvx --from build pyproject-build
	uvx twine check --strict dist/*
	uvx pyroma .
	uvx check-wheel-contents --toplevel trajstore,analyzers,train dist/*.whl

clean:
	rm -rf .venv .venv-smoke .venv-codes .venv-no-torch demo docs/_build docs/auto_gallery docs/reference/generated
