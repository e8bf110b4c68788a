# Every target does its own set-up: a virtual environment, the installation, then the work.
# Portable to GNU make 3.81, which macOS ships.
#
#   PYTHON       interpreter to build with    make test PYTHON=python3.12 VENV=.venv-312
#   PYTEST_ARGS  more for pytest              make test PYTEST_ARGS="-k mel -x"
#   PART         a part of the slow tests     make test-slow PART=0/7
#   TORCH        what `make parity` installs first. On Linux the default brings gigabytes of CUDA
#                libraries; the CPU build is enough, from a wheel you have
#                (TORCH=path/to/torch.whl) or from PyTorch's own index
#                (TORCH="torch==2.13.0+cpu --extra-index-url <the index of CPU builds>")

VENV        ?= .venv
PARITY_VENV ?= .venv-parity
TPU_VENV    ?= .venv-tpu
PYTHON      ?=
TORCH       ?= torch==2.13.0
WORKERS     ?= 2
PYTEST_ARGS ?=
PART        ?=
MUTANTS_ARGS ?=
SEED        ?= 0

SETUP = PYTHON="$(PYTHON)" sh tools/setup_venv.sh
SETUP_PARITY = FIRST="$(TORCH)" $(SETUP) "$(PARITY_VENV)" parity,dev

# Another project's paths and pip habits must not leak into ours.
unexport PYTHONPATH
unexport PYTHONHOME
unexport PIP_USER

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-slow mutants floods parity test-tpu-backend lint train-tiny bench bench-kernels plans rl-effects rl-trap clean distclean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

setup:  ## only the set-up, with the tools for tests, in .venv
	@$(SETUP) "$(VENV)" dev

demo:  ## three fresh sound scenes, a question about each, answered by the shipped model
	@$(SETUP) "$(VENV)"
	@"$(VENV)/bin/stepaudio" demo

test:  ## the fast tests, on the CPU, without torch
	@$(SETUP) "$(VENV)" dev
	"$(VENV)/bin/python" -m pytest -n $(WORKERS) --dist=worksteal -m "not slow and not parity and not tpu_backend and not tpu" $(PYTEST_ARGS)

test-slow:  ## whole learning runs, many kills, soaks; PART=0/7 … 6/7 a seventh of them
	@$(SETUP) "$(VENV)" dev
	"$(VENV)/bin/python" -m pytest -n $(WORKERS) --dist=worksteal -m slow $(if $(PART),--part=$(PART)) $(PYTEST_ARGS)

mutants:  ## break the code on purpose, one place at a time: do the tests notice? PART=0/7 … 6/7 a seventh
	@$(SETUP) "$(VENV)" dev
	"$(VENV)/bin/python" -m tools.mutants --workers $(WORKERS) $(if $(PART),--part $(PART)) $(MUTANTS_ARGS)

floods:  ## thousands of broken sounds, records and checkpoint folders, seeded: SEED=1
	@$(SETUP) "$(VENV)" dev
	"$(VENV)/bin/python" tools/flood_sounds.py --cases 15000 --seed $(SEED)
	"$(VENV)/bin/python" tools/flood_records.py --seed $(SEED)
	"$(VENV)/bin/python" tools/flood_checkpoints.py --cases 900 --seed $(SEED)

parity:  ## our numbers against torch and transformers, in .venv-parity
	@$(SETUP_PARITY)
	"$(PARITY_VENV)/bin/python" -m pytest -m parity $(PYTEST_ARGS)

test-tpu-backend:  ## compile for TPUs without one, in .venv-tpu (Linux on x86-64)
	@if [ "$$(uname -s)-$$(uname -m)" != Linux-x86_64 ]; then \
	  echo "test-tpu-backend: skipped, the TPU compiler (libtpu) exists for Linux on x86-64 only"; \
	else set -e; \
	  $(SETUP) "$(TPU_VENV)" tpu,dev; \
	  JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 "$(TPU_VENV)/bin/python" -m pytest -m tpu_backend $(PYTEST_ARGS); \
	fi

lint:  ## ruff and pyright
	@$(SETUP) "$(VENV)" dev
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/pyright" --pythonpath "$(VENV)/bin/python"

# Each step allocates and frees the same gigabytes. Kept by the process and in huge pages, they are not faulted in and
# zeroed again, which took a third of the time of the two cores (glibc only; elsewhere the setting is ignored).
train-tiny: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=30000000000:glibc.malloc.arena_max=1
train-tiny:  ## train the shipped model again from its config, into runs/tiny_finish
	@$(SETUP) "$(VENV)"
	"$(VENV)/bin/stepaudio" train --config=configs/tiny.py --workdir=runs/tiny
	"$(VENV)/bin/stepaudio" train --config=configs/tiny_finish.py --workdir=runs/tiny_finish

rl-effects:  ## what reinforcement does to the tiny model, three seeds, into runs/rl-effects (two hours; it goes on)
	@$(SETUP) "$(VENV)"
	"$(VENV)/bin/python" -m benchmarks.rl_effects

rl-trap:  ## what verified rewards alone do to dialogues, and the way out, three seeds, into runs/rl-trap (it goes on)
	@$(SETUP) "$(VENV)"
	"$(VENV)/bin/python" -m benchmarks.rl_trap

bench:  ## the benchmarks, ours beside a peer, in .venv-parity
	@$(SETUP_PARITY)
	@set -e; for script in frontend generate engine train_step convert data_build data_pipeline; do \
	  echo "== benchmarks/$$script.py"; "$(PARITY_VENV)/bin/python" -m "benchmarks.$$script"; \
	done

bench-kernels:  ## the TPU kernels beside the public ones, by the TPU compiler's schedules, in .venv-tpu (half an hour)
	@$(SETUP) "$(TPU_VENV)" tpu,dev,peers
	@"$(TPU_VENV)/bin/python" -m benchmarks.flash_attention
	@"$(TPU_VENV)/bin/python" -m benchmarks.attention_work

plans:  ## does the 33B fit real pods: every slice compiled without a TPU, in .venv-tpu (twenty minutes)
	@$(SETUP) "$(TPU_VENV)" tpu,dev
	@JAX_PLATFORMS=cpu "$(TPU_VENV)/bin/python" -m benchmarks.plans

clean:  ## remove caches, build output and the demo's scenes; runs/ and the venvs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis demo-scenes
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the virtual environments
	rm -rf .venv .venv-parity .venv-tpu .venv-312 .venv-313
