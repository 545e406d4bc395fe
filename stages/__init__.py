"""The entrypoints: one file per DVC stage, run as `python -m stages.<stage>`."""
