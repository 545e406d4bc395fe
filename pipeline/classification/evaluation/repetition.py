"""The same training with another seed: what of a difference between two models is noise."""

from pathlib import Path

import numpy as np

from pipeline.classification.data.examples import read_examples, sample_rows
from pipeline.classification.evaluation.metrics import scores
from pipeline.classification.evaluation.study import open_subject
from pipeline.classification.evaluation.subject import Kind
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.features import depths
from pipeline.evaluation.intervals import rounded
from pipeline.evaluation.similarity import linear_cka
from pipeline.settings import Repeat
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

SCORES = ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss", "ece", "examples")


def compare_seeds(
    kind: Kind, first: Net, second: Net, settings: Repeat, hardware: Hardware
) -> dict[str, float]:
    """The second model's scores, and how it stands to the first on the same test examples.

    Returns:
        The scores of `SCORES`; `difference` of the accuracies with `difference_low` and
        `difference_high`, and the `p_value` of McNemar's test; `agreement`, the share of equal
        answers; `cka/<depth>`, the linear CKA of the two models' features.

    Raises:
        PipelineError: the data set is missing or damaged, or has other classes than a model; or a
            logit is not finite.
    """
    subjects = [open_subject(kind, net, settings, hardware) for net in (first, second)]
    test = read_examples(Path(settings.data), "test", first.task.name, kind.column, kind.read)
    logits = [subject.logits(test.raw) for subject in subjects]
    answers = [part.argmax(axis=1) for part in logits]
    found = scores(logits[1], test.labels, subjects[1].classes, settings.seed)
    against = compare(answers[0] == test.labels, answers[1] == test.labels, settings.seed)
    numbers = {name: found[name] for name in SCORES} | {
        "difference": against.gain,
        "difference_low": against.interval.low,
        "difference_high": against.interval.high,
        "p_value": against.p_value,
        "agreement": float(np.mean(answers[0] == answers[1])),
    }
    some = test.take(sample_rows(len(test), settings.compared, settings.seed))
    features = [subject.features(some.raw) for subject in subjects]
    for depth, stage in depths([name for name in features[0] if name != "logits"]).items():
        numbers[f"cka/{depth}"] = linear_cka(features[0][stage], features[1][stage])
    return rounded(numbers)
