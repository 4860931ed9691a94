PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
DTYPE ?= float32
PIP := -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/.installed
PEERS := .peers/.installed

.PHONY: install web demo smollm2 test lowest newest bench lint docs clean

install: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)python $(PIP) -r requirements.lock
	$(RUN)python $(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	$(RUN)scalar quickstart --out runs/quickstart

smollm2: install  # or make smollm2 DTYPE=bfloat16
	$(RUN)python -m benchmarks.smollm2 --dtype $(DTYPE)

web:  # the pages of the explorer and of features, from web/ into src/scalar_sae; needs node 20 or newer
	cd web && npm ci --no-audit --no-fund && npm run build

test: install
	$(RUN)python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lowest:  # every verb once, under the lowest versions that pyproject.toml declares
	$(PYTHON) -m venv --clear .lowest
	.lowest/bin/python $(PIP) -r requirements.lowest .
	.lowest/bin/python -m tests.smoke

newest:  # every verb once, under the newest versions that there are; PyTorch is that of the lock
	$(PYTHON) -m venv --clear .newest
	.newest/bin/python $(PIP) '.[data,gguf]' "$$(grep ^torch== requirements.lock)"
	.newest/bin/python -m tests.smoke

bench: install $(PEERS)
	$(RUN)python -m benchmarks
	.peers/bin/python -m benchmarks.training

$(PEERS): benchmarks/peers.txt
	$(PYTHON) -m venv .peers
	.peers/bin/python $(PIP) -r benchmarks/peers.txt -e .
	.peers/bin/python -m pip uninstall --quiet --yes torchvision  # a peer's peer asks for it; its build need not be torch's
	@touch $@

lint: install
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)pyright

docs: install  # the documentation site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(RUN)python -m mkdocs build --strict

clean:
	rm -rf $(VENV) .lowest .newest .peers runs site .cache
