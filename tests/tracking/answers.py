"""Logged models, and what they answer where this project is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import tracking
from pipeline.settings import Tracking
from pipeline.training import net as nets
from pipeline.training.net import Net
from pipeline.training.stage import carried, shipped
from tests.tracking.conftest import runs

FRESH = """
import base64, json, sys
import numpy as np
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}")
raw = [base64.b64decode(text) for text in json.loads(sys.argv[3])]
given = [*raw, *json.loads(sys.argv[3])[:1], *eval(sys.argv[4]), *model.input_example]
assert model.metadata.signature.inputs and model.metadata.signature.outputs
import pipeline
assert "/code/pipeline/" in pipeline.__file__, pipeline.__file__
assert "hydra" not in sys.modules
print(json.dumps(model.predict(given)))
"""


def fresh(workspace: Path, model_id: str, raw: list[bytes], arrays: str) -> list[dict[str, Any]]:
    """What the model answers in a process that does not have this project.

    To the raw inputs, the first of them as base64, the arrays, and the example it was logged with.
    """
    import base64

    texts = json.dumps([base64.b64encode(each).decode() for each in raw])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, f"sqlite:///{workspace}/mlflow.db", model_id, texts, arrays],
        cwd=workspace,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def log(settings: Tracking, net: Net, example: Any, folder: Path, **params: Any) -> Path:
    """Log a model as its training stage does; returns the folder that it is written to."""
    task, files = net.task, folder / "models" / net.task.about.model
    files.mkdir(parents=True)
    nets.save(files, net)
    run = tracking.start(task.about.stage, settings, params, {"device": "cpu"})
    run.metrics({"validation/accuracy": 0.5}, step=3)
    run.output(files)
    facts = {"task": task.name, **net.facts.model_dump()}
    served = carried(net, files, folder)
    run.model(served, shipped(task, folder / "code"), task.about.packages, example, facts)
    run.end()
    return files


def logged(client: Any, experiment: str) -> Any:
    (run,) = runs(client, experiment)
    (output,) = run.outputs.model_outputs
    return client.get_logged_model(output.model_id)
