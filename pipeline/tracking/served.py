"""The code of a logged model ("models from code"): raw inputs in, the task's answers out.

MLflow copies this file into the model and runs it there, with the shipped part of `pipeline` on
the path and without the rest. What it takes, in a list or a one-column DataFrame, and what it
answers, says the task: `encode` in its `data.py`, `answer` in its `model.py`.

MLflow also runs this file when it saves a model, so torch is imported only when one is loaded.
"""

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

BATCH = 64  # examples in one forward pass


class Served(PythonModel):
    """A trained model of this pipeline."""

    def load_context(self, context: Any) -> None:
        """Read the weights."""
        from pipeline.training import net

        self._net = net.load(Path(context.artifacts["model"]))

    def predict(self, model_input: list[Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        """The task's answer for each of the raw inputs.

        Raises:
            ValueError: an input is not of a kind that the task takes.
        """
        import torch

        net, answers = self._net, []
        for first in range(0, len(model_input), BATCH):
            inputs = net.task.data.encode(model_input[first : first + BATCH], net)
            with torch.inference_mode():
                output = net.module(**inputs)
            answers += net.task.model.answer(output, net)
        return answers


set_model(Served())
