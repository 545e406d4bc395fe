"""Measure a trained model on its test split, once, and show what it learnt.

python -m stages.evaluate model=cnn
python -m stages.evaluate model=rnn parts.robustness=false
"""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checks import DIGEST, measured
from pipeline.errors import PipelineError
from pipeline.evaluation.intervals import rounded
from pipeline.figures.page import fill
from pipeline.figures.style import look
from pipeline.files import digest, new_directory, write_json
from pipeline.prepared import read_card
from pipeline.settings import Evaluate
from pipeline.stage import Context, run, stage
from pipeline.task import Task, of_a_model, with_parts
from pipeline.training import net as nets

PREDICTIONS = "predictions.parquet"


@stage("evaluate", lambda: with_parts(of_a_model(Evaluate)))
def main(settings: Evaluate, context: Context) -> float:
    """The body; returns the headline of the test metrics."""
    data, weights, run = Path(settings.data), Path(settings.weights), context.run
    net = nets.load(weights)
    about, show = net.task.about, net.task.show
    run.input(data, name="data", context="testing")
    run.input(weights, name="model")
    own = net.task.settings.Parts
    chosen = settings.parts.model_dump(include=set(own.model_fields), exclude_unset=True)
    settings = settings.model_copy(update={"parts": own.model_validate(chosen)})
    study = show.study(net, settings, context.hardware, _rows(Path(settings.curve)))
    with new_directory(Path(settings.plots), PREDICTIONS) as folder, look():
        found = fill(folder, show.PARTS, study, settings.parts)
        numbers = rounded(measured(net.task, "PARTS", found))
        check_predictions(folder / PREDICTIONS, net.task, numbers["examples"])
    card = read_card(data)
    test = card.splits["test"].sha256
    write_json(Path(settings.metrics), numbers | {DIGEST: test})

    md5 = digest(weights / nets.WEIGHTS)
    logged = {f"test/{name}": value for name, value in numbers.items()}
    run.metrics(logged)
    run.metrics(logged, target=f"trained:{md5}")
    run.tags({"summary": settings.model})
    for name, value in numbers.items():
        if name.startswith("baseline/") and name.endswith(f"/{about.headline}"):
            simple = name.removeprefix("baseline/").removesuffix(f"/{about.headline}")
            beside = f"beside:{settings.model} baseline: {simple}"
            run.metrics({f"test/{about.headline}": value}, target=beside)
    run.artifact(Path(settings.plots))
    run.output(Path(settings.plots))
    run.register(
        about.registered,
        weights=md5,
        data=card.digest,
        test=test,
        predictions=Path(settings.plots) / PREDICTIONS,
        metrics=logged,
        promote=settings.tracking.promote,
        capped=any(cap is not None for _, cap in settings.profile),
    )
    low, high = (numbers[f"{about.headline}_{end}"] for end in ("low", "high"))
    value = numbers[about.headline]
    print(f"test {about.headline} {value:.4f} ({low:.4f} to {high:.4f} with 95 % confidence)")
    return value


def check_predictions(path: Path, task: Task, examples: float) -> None:
    """Make sure that what versions are compared by is there.

    Raises:
        PipelineError: the table or a finite `score` for each of the test examples is missing.
    """
    try:
        scores = np.asarray(pq.read_table(path, columns=["score"])["score"], np.float64)
        whole = len(scores) == examples and np.isfinite(scores).all()
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise PipelineError(
            f"{task}/show.py, PARTS: {path.name} is missing or does not have a finite `score` for "
            f"each of the {examples} test examples; one of the parts has to write it"
        )


def _rows(curve: Path) -> list[dict[str, str]]:
    try:
        with curve.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise PipelineError(
            f"{curve} can't be read ({error.strerror}); train the model again to make it"
        ) from error


if __name__ == "__main__":
    run(main)
