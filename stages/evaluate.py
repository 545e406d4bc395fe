"""Measure a trained model on its test split, once, and show what it learnt.

python -m stages.evaluate model=cnn
python -m stages.evaluate model=rnn parts.robustness=false
"""

import csv
import re
from pathlib import Path

from pipeline import models
from pipeline.prepared import read_card
from pipeline.errors import PipelineError
from pipeline.classification.examples import read_examples
from pipeline.classification.evaluation.predictions import Predictions
from pipeline.classification.evaluation.study import Data, study
from pipeline.classification.evaluation.subject import Subject
from pipeline.figures.style import look
from pipeline.files import digest, new_directory, write_json
from pipeline.settings import Evaluate
from pipeline.stage import Context, run, stage


@stage("evaluate", Evaluate)
def main(settings: Evaluate, context: Context) -> float:
    """The body; returns the test accuracy."""
    data, weights = Path(settings.data), Path(settings.weights)
    run, hardware = context.run, context.hardware
    subject = Subject.read(
        weights, data, hardware.device, settings.batch_size, hardware.accelerator.autocast
    )
    run.input(data, name="data", context="testing")
    run.input(weights, name="model")
    train, validation, test = (read_examples(data, s) for s in ("train", "validation", "test"))
    held_out = [
        Predictions(subject.logits(split.raw), split.labels) for split in (validation, test)
    ]
    with new_directory(Path(settings.plots), "predictions.parquet") as folder, look():
        numbers = study(
            subject,
            Data(train, validation, test, *held_out),
            settings.parts,
            folder,
            name=settings.model,
            seed=settings.seed,
            mistakes=settings.mistakes,
            curve=_rows(Path(settings.curve)),
        )
    write_json(Path(settings.metrics), numbers)

    card, md5 = read_card(data), digest(weights / models.WEIGHTS)
    tested = {f"test/{name}": value for name, value in numbers.items()}
    run.metrics(tested)
    run.metrics(tested, target=f"trained:{md5}")
    run.tags({"summary": settings.model})
    for name, value in numbers.items():
        if baseline := re.fullmatch(r"baseline/(.+)/accuracy", name):
            beside = f"beside:{settings.model} baseline: {baseline[1]}"
            run.metrics({"test/accuracy": value}, target=beside)
    run.artifact(Path(settings.plots))
    run.output(Path(settings.plots))
    run.register(
        f"{card.task}-classifier",
        weights=md5,
        data=card.digest,
        predictions=Path(settings.plots) / "predictions.parquet",
        metrics=tested,
        promote=settings.tracking.promote,
        capped=any(cap is not None for _, cap in settings.profile),
    )
    print(
        f"test accuracy {numbers['accuracy']:.4f} "
        f"({numbers['accuracy_low']:.4f} to {numbers['accuracy_high']:.4f} with 95 % confidence)"
    )
    return numbers["accuracy"]


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
