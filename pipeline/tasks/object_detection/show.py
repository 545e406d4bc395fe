"""What evaluation measures and draws of a detector; the parts themselves are in `evaluation`."""

from functools import partial

from pipeline.evaluation.intervals import rounded
from pipeline.settings import Repeat
from pipeline.tasks.object_detection.evaluation import baselines, matches, parts, probes
from pipeline.tasks.object_detection.evaluation.study import numbers_of, open_study
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

study = partial(open_study, splits=("train", "test"))


def repetition(first: Net, second: Net, settings: Repeat, hardware: Hardware) -> dict[str, float]:
    """The second network's numbers; how it stands to the first on the same test images."""
    studies = [open_study(net, settings, hardware, (), ("test",)) for net in (first, second)]
    numbers = numbers_of(studies[1])
    against = matches.difference(studies[0].matches, studies[1].matches, settings.seed)
    return rounded(
        numbers
        | {
            "difference": studies[1].precision.map - studies[0].precision.map,
            "difference_low": against.low,
            "difference_high": against.high,
            "p_value": against.p_value,
        }
    )


PARTS = {
    "learning": parts.learnt,
    "answers": parts.answers,
    "curves": parts.curves,
    "errors": parts.errors,
    "calibration": parts.calibration,
    "probes": probes.probes,
    "robustness": parts.robustness,
    "baselines": baselines.against_rules,
    "scores": parts.scores,
}
"""In the order in which they are measured and shown."""
