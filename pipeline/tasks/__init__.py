"""The tasks, one folder each; `pipeline.task` says what a folder holds."""
