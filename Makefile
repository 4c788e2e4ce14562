# One word runs everything; each target does its own set-up on a fresh machine.
.PHONY: demo test check lint bench docs slow soak images wheel clean

venv := .venv
bin := $(venv)/bin
# What the tests talk to: a real sshd, R with its kernel, a terminal of their own, a Python
# that another user can run, the login shells that people have, codes that work once, networks,
# a browser, Node.js for another client than Python's, what Qt draws with, and a compiler for a disk that
# hangs.
parts := openssh-server openssh-client r-base-core r-cran-irkernel tmux python3-venv fish tcsh zsh \
	libpam-oath iproute2 procps chromium libgl1 gcc libc6-dev $(shell command -v npm >/dev/null || echo nodejs npm)
pip := $(bin)/python -m pip --disable-pip-version-check --quiet

demo: $(venv)/.base
	$(bin)/remoter demo

# Quick (under a minute): form, types, the house, and everything pure.
check: lint
	$(bin)/python -m pytest -q tests/pure

lint: $(venv)/.tools
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports --no-cache

# Most tests wait more than they compute, so several run at once; what is tried again is told.
# Proofs of timing run alone. Coverage is that of tests that start no session (tests/conftest.py);
# it has a floor.
test: parts lint docs wheel
	$(bin)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder -m "not slow and not timing" --cov=remoter_kernel --reruns 1 -raR
	$(bin)/python -m pytest -m "timing and not slow" --reruns 1 -raR

slow: parts $(venv)/.tools
	$(bin)/python -m pytest -m slow

# Half an hour in bad weather; SOAK_SEED throws the dice of an earlier run again.
soak: parts $(venv)/.tools
	$(bin)/python -m tests.soak --minutes $(or $(SOAK_MINUTES),30) $(addprefix --seed ,$(SOAK_SEED))

bench: parts $(venv)/.bench
	$(bin)/python -m bench

docs: $(venv)/.tools
	$(bin)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# The pictures in the docs: what the program prints, and what a browser shows.
images: parts $(venv)/.tools
	$(bin)/python docs/make_images.py
	REMOTER_PICTURES=$(CURDIR)/docs/images $(bin)/python -m pytest -q tests/whole/test_lab*.py

# The wheel must bring the kernelspec: Jupyter looks for nothing else.
wheel: $(venv)/.tools
	rm -rf build/wheel
	$(bin)/python -m build --wheel --outdir build/wheel . >/dev/null
	$(bin)/python -m zipfile -l build/wheel/*.whl | grep -q 'share/jupyter/kernels/remoter/kernel.json'
	$(bin)/python -m zipfile -l build/wheel/*.whl | grep -q 'remoter_kernel/cli/main.py'

.PHONY: parts
parts:
	.ci/packages $(parts)

# A virtual environment in three steps, each made again only when what it is made from changes.
$(bin)/python:
	.ci/find-python >/dev/null 2>&1 || .ci/packages python3-venv
	python=$$(.ci/find-python) && { "$$python" -m venv $(venv) || { rm -rf $(venv); exit 1; }; }

$(venv)/.base: pyproject.toml kernelspec/kernel.json | $(bin)/python
	$(pip) install --editable .
	touch $@

$(venv)/.tools: pyproject.toml | $(venv)/.base
	$(pip) install --editable '.[test,docs]'
	touch $@

$(venv)/.bench: pyproject.toml | $(venv)/.base
	$(pip) install --editable '.[bench]'
	touch $@

clean:
	rm -rf $(venv) build docs/_build
