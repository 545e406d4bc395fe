"""Tracking: MLflow remembers what ran, and can't hurt it.

    run = tracking.start("train_cnn", settings.tracking, config, card)
    run.metrics({"train/loss": 0.31}, step=10)
    run.end("FINISHED")

Every call appends an operation to a local journal; one process (`sender`) sends the journals of
a workspace to the MLflow store. The stage never imports mlflow and never waits for the store,
except at its end, and there only as long as the store makes progress.
"""

from pipeline.tracking.journal import new_id
from pipeline.tracking.run import Run, start
from pipeline.tracking.surroundings import root

__all__ = ["Run", "new_id", "root", "start"]
