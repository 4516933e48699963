# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV   := .venv
PYTHON := $(VENV)/bin/python
READY  := $(VENV)/.ready
SEED   ?= 0
VLLM   ?= 0.29.0
DEMO   ?= runs/demo-$(SEED)
IMAGES ?= 4000
CONFIG ?= mpa_ray/demo/demo.yaml

.PHONY: demo setup format check test other-vllm bench bench-leveling bench-gains bench-metrics bench-scale bench-chaos models

demo: setup ## Align the bundled student with the bundled teacher, from unlabeled images to a report
	$(PYTHON) -m mpa_ray.demo.images --out $(DEMO)/data --num-images $(IMAGES) --seed $(SEED)
	$(PYTHON) jobs/align.py --config $(CONFIG) --run_dir $(DEMO)/run \
	    --source.path $(DEMO)/data/unlabeled --evaluate.benchmarks.0.path $(DEMO)/data/heldout/questions.jsonl \
	    --annotate.sampling.seed $(SEED) --students.0.level.seed $(SEED)

setup: $(READY) ## Make .venv; does nothing when it is up to date

$(READY): pyproject.toml cluster/setup_cpu.sh
	cluster/setup_cpu.sh $(VENV)
	touch $@

format: setup ## Rewrite the code in the project's style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

check: setup ## Style, types and unit tests: under 2 minutes
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest -q tests/unit

test: check ## Everything: also local Ray and real vLLM
	$(PYTHON) -m pytest -q tests/integration tests/engine

other-vllm: ## The engine's tests with another vLLM, in an environment of its own: make other-vllm VLLM=0.29.0
	cluster/setup_cpu.sh .venv-vllm-$(VLLM) $(VLLM)
	.venv-vllm-$(VLLM)/bin/python -m pytest -q tests/engine/test_visit.py

bench: setup ## Throughput against everything else, three quarters of an hour; writes benchmarks/results
	$(PYTHON) -m benchmarks.throughput

bench-leveling: setup ## Leveling against a plain Trainer: 6 minutes
	$(PYTHON) benchmarks/leveling.py

bench-gains: setup ## What alignment gains at 3 seeds, three quarters of an hour
	$(PYTHON) benchmarks/gains.py

bench-metrics: setup ## A million strings through every metric, a million predictions scored: 5 minutes
	$(PYTHON) benchmarks/metrics.py

bench-scale: setup ## A million images through the graph, half an hour
	$(PYTHON) benchmarks/scale.py

bench-chaos: setup ## Kills at random moments, an hour and a half
	$(PYTHON) benchmarks/chaos.py --trials 100
	$(PYTHON) benchmarks/chaos.py --trials 5 --engine vllm

models: setup ## Train the bundled teacher and student anew, into runs/models
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
	    $(PYTHON) -m mpa_ray.demo.train --out runs/models --seed $(SEED)
