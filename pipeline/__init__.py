"""Stages that DVC calls and Hydra configures: a deep-learning pipeline anyone can reproduce."""

import gc
import os

# OpenMP reads its environment once, when torch is first imported, so this is the last place.
# Threads that spin while they wait make an epoch up to a hundred times slower beside one busy
# process; threads that sleep at once make small steps half as fast on an idle machine. GNU's
# OpenMP, which torch has on Linux, can spin a little (some 20 µs) first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# cuBLAS repeats its results only with a fixed workspace (docs of use_deterministic_algorithms).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Said aloud, it does not make the tokenizer warn of its threads at every process started later.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Imports make a million objects that stay; looking through them again and again, as Python does
# from 700 new ones on, takes up to a second of every start, and finds nothing.
gc.set_threshold(1_000_000)
