# Two commands for a newcomer: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE := paper
RUNS := $(if $(filter paper,$(RECIPE)),runs,runs/$(RECIPE))
RUN := $(RUNS)/demo/finetune
LAUNCH := launch/cpu_zero2.yaml

# For a driver that is too old for the torch of constraints.txt: `make install TORCH_INDEX=ADDRESS`,
# the address of PyTorch's wheels for another CUDA (the README says which driver needs which).
TORCH_INDEX :=
TORCH := $(if $(TORCH_INDEX),--index $(TORCH_INDEX) --index-strategy unsafe-best-match)

SYNTHETIC := shards/synthetic
TINY_LLM = $(BIN)/python -m signfuse_dist.synthetic.tiny_llm --text data/synthetic/synthetic.tsv
ABLATE = OMP_NUM_THREADS=1 $(BIN)/signfuse ablate
ABLATE_ON = --launch $(LAUNCH) --num-processes 1 --parallel 2

.PHONY: install demo ablation-demo transfer-demo synthetic test test-all gpu-session lint clean

install: $(VENV)/.installed

# uv installs what constraints.txt pins in seconds, and compiles: imports without bytecode are slow.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "$(PYTHON) is `$(PYTHON) --version`; Python 3.10 to 3.12 is needed: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode $(TORCH) \
	  --constraint constraints.txt --editable '.[pose,dev]'
	@touch $@

# Every step keeps what is already done, so after ctrl-C the same command goes on.
synthetic: install
	$(BIN)/signfuse pack synthetic --root data/synthetic --split train \
	  --out $(SYNTHETIC)/train --frame-size 48 --fps 10 --workers 2
	$(BIN)/signfuse pack synthetic --root data/synthetic --split dev \
	  --out $(SYNTHETIC)/dev --frame-size 48 --fps 10 --workers 2
	$(BIN)/signfuse pack synthetic --root data/synthetic --split test \
	  --out $(SYNTHETIC)/test --frame-size 48 --fps 10 --workers 2
	$(TINY_LLM) --out $(SYNTHETIC)/tiny_llm

# `make demo RECIPE=strong` trains by that recipe, in runs/strong.
demo: synthetic
	$(BIN)/signfuse verify shards/synthetic/train --workers 2
	$(BIN)/signfuse train demo recipe=$(RECIPE) train.output=$(RUNS) --launch $(LAUNCH)
	$(BIN)/accelerate launch --config_file $(LAUNCH) -m signfuse_dist.cli evaluate $(RUN) --split test
	$(BIN)/signfuse report $(RUN) --split test
	$(BIN)/signfuse translate $(RUN) data/synthetic/clips/test_0000.mp4 \
	  --joints data/synthetic/joints/test_0000.npz
	@echo
	@echo "Look at:"
	@echo "  $(RUN)/evaluation/test/report.html       scores, curves, samples with skeletons, the gate"
	@echo "  $(RUN)/evaluation/test/hypotheses.jsonl  every translation beside its reference"
	@echo "  data/synthetic/clips/                    the drawn signer"
	@echo "  $(RUN)/config.yaml                       the run, fully resolved"

# The five tables of section 5.4 on the synthetic corpus: docs/ablations.md.
ablation-demo: synthetic
	$(TINY_LLM) --hidden-size 64 --out $(SYNTHETIC)/tiny_llm_narrow
	$(TINY_LLM) --num-layers 2 --out $(SYNTHETIC)/tiny_llm_shallow
	$(TINY_LLM) --encoder-decoder --num-layers 2 --out $(SYNTHETIC)/tiny_t5
	$(ABLATE) components,stages ablation_demo $(ABLATE_ON)
	$(ABLATE) fusion,scales,configs/ablation/tiny/backbones.yaml ablation_demo \
	  'train.stages=[finetune]' stage.epochs=3 model.visual_width=8 $(ABLATE_ON)
	@echo "tables and charts: runs/ablation/tables/ablation_demo/"

# What pre-training on one sign language gains on another: docs/training.md, "What a start gains".
PRETRAIN = $(BIN)/signfuse train ablation_demo 'train.stages=[finetune]' model.visual_width=8 \
  stage.epochs=5 --launch $(LAUNCH) --num-processes 1
SECOND = synthetic_second
transfer-demo: synthetic
	$(BIN)/python -m signfuse_dist.synthetic.corpus data/$(SECOND) --sign-language second
	for split in train dev test; do $(BIN)/signfuse pack synthetic --root data/$(SECOND) \
	  --split $$split --out shards/$(SECOND)/$$split --frame-size 48 --fps 10 --workers 2 || exit; done
	$(PRETRAIN) train.output=runs/pretrained/both
	$(PRETRAIN) train.output=runs/pretrained/joints model.streams=skeletal loss.contrastive_weight=0
	$(ABLATE) configs/ablation/tiny/transfer.yaml transfer_demo 'train.stages=[finetune]' --seeds 0,1,2 \
	  --split test $(ABLATE_ON)

# On a machine with one GPU: a quarter of an hour, no network; docs/benchmarks.md says what it runs.
gpu-session: synthetic
	$(BIN)/python benchmarks/gpu_session.py --out gpu-session

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Files are shared out to two processes, the longest ones first; what needs the machine runs after them.
FOLDERS := $(addprefix tests/,integration gpu invariance parity unit)
SHARED = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
  $(FOLDERS)
ALONE = $(BIN)/python -m pytest tests/integration tests/slurm

test: lint
	$(SHARED) -m "not alone and not long"; status=$$?; $(ALONE) -m "alone and not long" && exit $$status

test-all: lint
	$(SHARED) -m "not alone"; status=$$?; $(ALONE) -m alone && exit $$status

clean:
	rm -rf $(VENV) build *.egg-info
