"""What is learnt at which depth: probes and similarity, from features that are computed once."""

from typing import Any

import numpy as np

from pipeline.classification.evaluation.study import Study
from pipeline.evaluation.features import depths
from pipeline.evaluation.intervals import share
from pipeline.evaluation.probes import probe
from pipeline.evaluation.similarity import cka_matrix
from pipeline.figures import depth as figures
from pipeline.figures.page import Page


def probes(page: Page, study: Study) -> None:
    """Linear probes on the raw input and at three depths, of both networks."""
    found, name = study.features, study.name
    raw = study.subject.kind.vectors(found.train.raw, found.test.raw)
    stages = depths([stage for stage in found.trained[0] if stage != "logits"])
    labels = found.train.labels, found.test.labels
    rows: list[dict[str, Any]] = []
    drawn: dict[str, dict[str, figures.Estimate]] = {"trained": {}, "untrained": {}}
    right = np.zeros(len(found.test), dtype=bool)
    for network, features in (("trained", found.trained), ("untrained", found.control)):
        places = {"raw": ("input", raw)} | {
            depth: (stage, (features[0][stage], features[1][stage]))
            for depth, stage in stages.items()
        }
        for depth, (stage, (train, test)) in places.items():
            if depth == "raw" and network == "untrained":
                drawn[network][f"raw: {stage}"] = drawn["trained"][f"raw: {stage}"]
                continue
            right = probe(train, labels[0], test, labels[1], study.seed)
            accuracy, (low, high) = share(right)
            drawn[network][f"{depth}: {stage}"] = figures.Estimate(accuracy, low, high)
            rows.append(
                {"network": network, "depth": depth, "stage": stage}
                | {"accuracy": accuracy, "low": low, "high": high}
            )
            prefix = "probe" if network == "trained" else "probe_untrained"
            page.numbers[f"{prefix}/{depth}/accuracy"] = accuracy
    page.table("probes", rows, ["network", "depth", "stage", "accuracy", "low", "high"])
    model = float((found.trained[1]["logits"].argmax(axis=1) == labels[1]).mean())
    last = [next(reversed(part.values())).value for part in drawn.values()]
    start = next(iter(drawn["trained"].values())).value
    chance = float(np.bincount(labels[1]).max() / len(labels[1]))
    page.figure(
        "probes",
        figures.probe_curve(
            drawn["trained"], drawn["untrained"], model, chance, f"{name}: what each depth knows"
        ),
        title="Features in a hierarchy: linear probes",
        text=f"A linear classifier reads the class off the raw input in {start:.1%} of cases and "
        f"off the last stage in {last[0]:.1%}; every depth gets the same budget of "
        f"{len(found.train)} examples. In the same network untrained the last stage gives "
        f"{last[1]:.1%}: "
        + ("the rest is learnt, not built in." if last[0] > last[1] else "nothing was learnt."),
        alt=f"Probe accuracy by depth: {_listing(drawn['trained'])}. Untrained: "
        f"{_listing(drawn['untrained'])}.",
    )
    study.control = right  # of the untrained network's last stage


def similarity(page: Page, study: Study) -> None:
    """Linear CKA between the stages, and with those of the untrained control."""
    found = study.features
    trained = {stage: part for stage, part in found.trained[1].items() if stage != "logits"}
    beside = {stage: part for stage, part in found.control[1].items() if stage != "logits"}
    inside, across = cka_matrix(trained, trained), cka_matrix(trained, beside)
    rows = [
        {"network": network, "first": first, "second": second, "cka": matrix[i, j]}
        for network, matrix, names in (
            ("trained", inside, list(trained)),
            ("untrained", across, list(beside)),
        )
        for i, first in enumerate(trained)
        for j, second in enumerate(names)
    ]
    page.table("cka", rows, ["network", "first", "second", "cka"])
    ends = inside[0, -1]
    stages = list(trained)
    page.figure(
        "cka",
        figures.similarities(
            {"with itself": (inside, stages), "with the untrained network": (across, list(beside))},
            stages,
            f"{study.name}: how alike the stages are",
        ),
        title="How the representation changes with depth",
        text=f"Linear CKA compares the stages on {len(found.test)} test examples: 1 is the same up "
        f"to rotation and scale. First and last stage are {ends:.2f} alike; the diagonal of the "
        f"second table says what is left of the untrained network's stages "
        f"(last stage: {across[-1, -1]:.2f}).",
        alt=f"Two tables of linear CKA between {len(stages)} stages. First against last stage "
        f"{ends:.2f}; last stage against that of the untrained network {across[-1, -1]:.2f}.",
    )


def _listing(drawn: dict[str, figures.Estimate]) -> str:
    return ", ".join(f"{name} {point.value:.1%}" for name, point in drawn.items())
