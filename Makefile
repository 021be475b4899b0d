# Every target works from a fresh clone: scripts/install.py fills .venv first, and does nothing when
# it is complete.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
# With the CUDA builds of PyTorch and vLLM.
GPU := .venv/gpu/bin/python
TESTS ?= tests/unit tests/docs tests/k8s tests/dist tests/conformance tests/faults
# These fill the machine by themselves.
HEAVY ?= tests/e2e tests/images tests/gpu

# $(call venv,GROUP...)
venv = @$(or $(PYTHON),$(error Python 3.11 or newer is needed; name it with PYTHON=...)) scripts/install.py

.PHONY: help install demo test bench gpu gpu-quick k8s images docs dist lint fmt generate clean

help:
	@echo "make install   the server and the connectors into .venv: .venv/bin/kv-sidecar"
	@echo "make demo      a real vLLM, its worker restarted, its prompt served from the sidecar"
	@echo "               (KEEP=1 leaves it running)"
	@echo "make test      lint and all tests (TESTS=tests/unit HEAVY= for some)"
	@echo "make bench     this server and lmcache's, side by side"
	@echo "make gpu       tests and bench of GPU workers, on a machine with an NVIDIA GPU"
	@echo "make gpu-quick the same in nine minutes, with a driver, Python and numpy alone"
	@echo "               (WHEELS=folder of scripts/gpu_wheels.py, SECONDS=540, FROM=0, NO_BATCHES=1)"
	@echo "make k8s       the manifests of k8s/, rendered into build/k8s and checked"
	@echo "make docs      the documentation as a site with search: build/site/index.html"
	@echo "make dist      the wheels and the sdist, into dist/"
	@echo "make images    builds the container images and runs them (root, buildah, debootstrap)"
	@echo "make lint      ruff, mypy, shellcheck, yamllint, hadolint;  make fmt formats"
	@echo "make generate  the files that are made from others: dashboard, rules, docs"
	@echo "make clean     remove .venv and what the tools left"

install:
	$(venv) base
	@echo "Ready: .venv/bin/kv-sidecar serve --l1-size-gb 4"

demo:
	$(venv) base engine
	@$(RUN) -m examples.demo $(if $(KEEP),--keep)

test: lint
	$(venv) base dev engine clients storage k8s docs browser dynamo images
	$(RUN) -m pytest --timeout=600 -n 4 --dist loadfile --no-loadscope-reorder $(TESTS)
	$(if $(HEAVY),$(RUN) -m pytest --timeout=600 $(HEAVY))
	.venv/dynamo/bin/python -m pytest -q tests/unit/test_connectors_golden.py

bench:
	$(venv) base dev engine storage bench
	$(RUN) -m bench

gpu:
	@test -e /dev/nvidiactl || { echo "make gpu needs an NVIDIA GPU: there is no /dev/nvidiactl"; exit 2; }
	$(venv) gpu
	$(GPU) -m pytest --timeout=1200 tests/gpu; failed=$$?; $(GPU) -m bench.gpu && exit $$failed

# Installs nothing: it is for a machine without a package index.
gpu-quick:
	@python3 -m tests.gpu.quick $(if $(WHEELS),--wheels $(WHEELS)) \
		--seconds $(or $(SECONDS),540) --from $(or $(FROM),0) $(if $(NO_BATCHES),--no-batches)

k8s:
	$(venv) base dev k8s
	@$(RUN) -m k8s.render

images:
	$(venv) base dev images
	$(RUN) -m pytest --timeout=1200 tests/images

docs:
	$(venv) base docs
	@$(RUN) -m sphinx -W --keep-going -q docs build/site
	@echo "build/site/index.html"

dist:
	$(venv) base dev
	@$(RUN) -m scripts.dist

lint:
	$(venv) base dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/shellcheck launch/*.sh .ci/run
	$(RUN) -m yamllint --strict .
	.venv/bin/hadolint Dockerfile Dockerfile.worker

fmt:
	$(venv) base dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

generate:
	$(venv) base
	$(RUN) scripts/monitoring.py
	$(RUN) scripts/metrics_doc.py
	$(RUN) scripts/configuration_doc.py
	$(RUN) scripts/stock_flags_doc.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
