# Every target works from a fresh clone: scripts/install.py fills .venv first, and does nothing when
# it is complete.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
TESTS ?= tests/unit tests/conformance tests/faults tests/e2e tests/gpu

# $(call venv,GROUP...)
venv = @$(or $(PYTHON),$(error Python 3.11 or newer is needed; name it with PYTHON=...)) scripts/install.py

.PHONY: help install demo test bench gpu lint fmt clean

help:
	@echo "make install   the server and the connectors into .venv: .venv/bin/kv-sidecar"
	@echo "make demo      a real vLLM, its worker restarted, its prompt served from the sidecar"
	@echo "               (KEEP=1 leaves it running)"
	@echo "make test      lint and all tests (TESTS=tests/unit for some of them)"
	@echo "make bench     this server and lmcache's, side by side"
	@echo "make gpu       tests and bench of GPU workers, on a machine with an NVIDIA GPU"
	@echo "make lint      ruff and mypy;  make fmt formats"
	@echo "make clean     remove .venv and what the tools left"

install:
	$(venv) base
	@echo "Ready: .venv/bin/kv-sidecar serve --l1-size-gb 4"

demo:
	$(venv) base engine
	@$(RUN) -m examples.demo $(if $(KEEP),--keep)

test: lint
	$(venv) base dev engine storage
	$(RUN) -m pytest --timeout=600 $(TESTS)

bench:
	$(venv) base dev engine storage
	$(RUN) -m bench

gpu:
	$(venv) base dev engine
	$(RUN) -m pytest --timeout=7200 tests/gpu
	$(RUN) -m bench.gpu --sweep
	$(RUN) -m bench.gpu

lint:
	$(venv) base dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

fmt:
	$(venv) base dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
