# Each target makes its own environment in .venv; PYTHON names the interpreter that it is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2

.PHONY: install demo test test-torch smoke-torch composites docs release test-zoo test-ray lint gallery bench bench-files bench-folders bench-memory bench-reference bench-graph bench-drawing bench-everyday bench-statistics bench-verifying

install: $(INSTALLED)

# robomimic and Model Explorer are what tests open exported files with; the parts of them that do need only what is there.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,test]'
	$(BIN)/python -m pip install --quiet --no-deps robomimic==0.3.0 ai-edge-model-explorer==0.1.34
	touch $@

# An environment of its own, with what the demo needs and nothing for development.
DEMO_VENV := .venv-demo

demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/python examples/demo.py

$(DEMO_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(DEMO_VENV)/bin/python || $(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gym,progress]'
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(JOBS)

# The tests with another torch, in an environment of its own; the result is a row of docs/versions.md:
# make test-torch TORCH=2.15.0. An empty PIP_CONSTRAINT, because a constraint of the machine may be meant for one torch.
TORCH ?= 2.14.1
EXTRAS ?= test
TORCH_VENV := .venv-torch-$(TORCH)-$(EXTRAS)

test-torch: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/python -m tools.test_torch docs/versions.md

# What CI runs with the newest torch, beside everything with the pinned one: what depends on the version most.
smoke-torch: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/python -m pytest -n $(JOBS) -m "not slow and not long and not zoo" tests/_torch/test_versions.py \
	  tests/_torch/test_dynamo.py tests/ops/test_facts.py tests/engines/eager/test_mode.py \
	  tests/engines/compiled/test_engine.py tests/graph/test_log.py tests/sinks/hdf5/test_values.py

$(TORCH_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(TORCH_VENV)/bin/python || $(PYTHON) -m venv $(TORCH_VENV)
	sed '/^torch==/d' constraints.txt > $(TORCH_VENV)/constraints.txt
	PIP_CONSTRAINT= $(TORCH_VENV)/bin/python -m pip install --quiet -c $(TORCH_VENV)/constraints.txt \
	  'torch==$(TORCH)' -e '.[$(EXTRAS)]'
	touch $@

# The site with all pages and the API reference, in .site/docs/index.html.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . .site

# Builds dist/ and checks it as its users get it: make release REPOSITORY=https://...
release: $(INSTALLED)
	$(BIN)/python -m tools.release "$(REPOSITORY)"

# Published models, which take an hour; torchvision without its compiled operators would disturb other packages, so it
# gets an environment of its own that sees the first one. What has run is in .zoo, and is not run again.
test-zoo: .venv-zoo/.installed
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 .venv-zoo/bin/python -W ignore -m tests.zoo.run docs/zoo.md .zoo
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 .venv-zoo/bin/python -W ignore -m tests.zoo.engines docs/zoo-engines.md .zoo/engines

# RLlib with two runners, one of which is killed, and Ray Data: minutes, and packages of their own.
RAY_VENV = .venv-ray
test-ray: $(RAY_VENV)/.installed
	$(RAY_VENV)/bin/python -m pytest -p no:cacheprovider -W ignore tests/ray tests/integrations/test_launchers.py \
	  tests/test_docstrings.py -k 'ray or launchers'

$(RAY_VENV)/.installed: pyproject.toml
	test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	PIP_CONSTRAINT= $(RAY_VENV)/bin/python -m pip install -e ".[smoke,lightning,ray]" accelerate
	touch $@

# The pictures of docs/gallery, and a page beside each.
gallery: .venv-zoo/.installed
	.venv-zoo/bin/python -m tools.gallery

.venv-zoo/.installed: | $(INSTALLED)
	$(BIN)/python -m venv .venv-zoo
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > `.venv-zoo/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"`/seen.pth
	.venv-zoo/bin/python -m pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31
	touch $@

# Which ops may run inside torch's composites, in the release of torch that is installed.
composites: $(INSTALLED)
	$(BIN)/python -W ignore -m tests.ops.scan_composites

bench: $(INSTALLED)
	mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only --benchmark-json=.benchmarks/last.json
	$(BIN)/python -m benchmarks.costs .benchmarks/costs.json
	$(BIN)/python -m benchmarks.report .benchmarks/last.json .benchmarks/costs.json
	$(BIN)/python -m benchmarks.figures

# What files cost: about four minutes. Whether memory stays flat over ten million records: about ten.
bench-files: $(INSTALLED) .benchmarks/torchlens-2.36.1
	$(BIN)/python -m benchmarks.files
	$(BIN)/python -m benchmarks.files_reading

# What a folder with a file of each of 400 processes costs to read: about two minutes.
bench-folders: $(INSTALLED)
	$(BIN)/python -m benchmarks.folders

bench-memory: $(INSTALLED)
	$(BIN)/python -m benchmarks.files_memory

bench-graph: bench-reference
	$(BIN)/python -m benchmarks.graph

# What reports of 1 GB and a sink of statistics cost: about five minutes, and 1 GB on the disk.
bench-statistics: $(INSTALLED)
	$(BIN)/python -W ignore -m benchmarks.statistics

# What it costs to compare values with their checksums while they are read: about two minutes.
bench-verifying: $(INSTALLED)
	$(BIN)/python -W ignore -m benchmarks.verifying

# What pictures and pages cost: about four minutes, with Graphviz and Chromium (.ci/install-programs).
bench-drawing: bench-reference .venv-zoo/.installed
	.venv-zoo/bin/python -W ignore -m benchmarks.drawing

# The versions exclude each other, so each gets a folder of its own; --no-deps keeps them from bringing another torch.
bench-reference: $(addprefix .benchmarks/torchlens-,2.15.0 2.36.1)

.benchmarks/torchlens-%: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --target $@ torchlens==$*
	$(BIN)/python -m pip install --quiet --upgrade --target $@ graphviz ipython

# What features, extraction, shuffled batches and episodes cost: about three minutes.
bench-everyday: .venv-zoo/.installed
	.venv-zoo/bin/python -W ignore -m benchmarks.everyday
