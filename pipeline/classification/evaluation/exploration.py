"""The page `explore.html`: the answers of one model, to be looked at with the pointer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.data.examples import Examples, sample_rows
from pipeline.classification.evaluation import metrics
from pipeline.classification.evaluation.baselines import standardise
from pipeline.classification.evaluation.study import Study
from pipeline.classification.evaluation.subject import Subject
from pipeline.evaluation.intervals import Integers
from pipeline.evaluation.probes import one_thread
from pipeline.figures import interactive
from pipeline.figures.page import Page
from pipeline.figures.style import MOST_CLASSES
from pipeline.files import new_file

FILE = "explore.html"
MOST_POINTS = 2000
"""Points of the map: a bound of the page's size."""


def exploration(page: Page, study: Study) -> None:
    """Write the page: confusion matrix, map of the examples `rows` of the test split, calibration.

    Their features come from another part where one has computed them.
    """
    subject, labels, rows, seed = study.subject, study.test.labels, study.rows, study.seed
    chances, shown = study.chances, study.test.take(rows)
    if study.parts.probes or study.parts.similarity:
        features = study.features.trained[1]
    else:
        last = subject.kind.points(subject.model, subject.encode(shown.take([0]).raw))[-1:]
        features = subject.features(shown.raw, last)
    stage = [stage for stage in features if stage != "logits"][-1]
    kept = sample_rows(len(rows), MOST_POINTS, seed)
    charts = [
        _confusion(chances, labels, subject.classes),
        _map(subject, shown.take(kept), features[stage][kept], chances, rows[kept], stage, seed),
        _calibration(chances, labels),
    ]
    accuracy = float(study.right.mean())
    _write(page, charts, name=study.name, accuracy=accuracy, examples=len(labels))


def plane(features: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float64], list[float]]:
    """The first two principal components [n, 2] of standardised features [n, d].

    Returns:
        The examples' places, and the share of the variance that lies along each axis.
    """
    from sklearn.decomposition import PCA

    scaled = standardise(features, features)[0]
    # A constant column changes nothing, and one feature alone then has a second component too.
    scaled = np.pad(scaled.astype(np.float64), ((0, 0), (0, 1)))
    with one_thread(), np.errstate(invalid="ignore"):
        found = PCA(2, random_state=seed)
        places = found.fit_transform(scaled)
    return places, np.nan_to_num(found.explained_variance_ratio_).tolist()


def _confusion(
    chances: NDArray[np.float64], labels: Integers, classes: list[str]
) -> dict[str, Any]:
    matrix = metrics.confusion(chances.argmax(axis=1), labels, len(classes))
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    most = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])
    left_out = (
        f" Of {len(classes)} classes the {len(most)} with the most mistakes are shown."
        if len(most) < len(classes)
        else ""
    )
    figure = interactive.confusion_map(matrix[np.ix_(most, most)], [classes[one] for one in most])
    return {
        "name": "confusion",
        "figure": figure,
        # Nearly square; held to squares by plotly, its margins swing between two widths.
        "width": f"min(100%, {figure.layout.height + 60}px)",
        "title": "What is taken for what",
        "text": "Each row is a true class, each column an answer; the diagonal is right. A square "
        f"shows its count and its share of the true class.{left_out}",
    }


def _map(
    subject: Subject,
    shown: Examples,
    features: NDArray[np.float32],
    chances: NDArray[np.float64],
    rows: Integers,
    stage: str,
    seed: int,
) -> dict[str, Any]:
    places, shares = plane(features, seed)
    dots = [
        interactive.Dot(
            int(row),
            int(shown.labels[place]),
            int(chances[row].argmax()),
            float(chances[row].max()),
            [f"{column}: {values[place]}" for column, values in shown.columns.items()],
            subject.kind.text(shown.raw[place]),
        )
        for place, row in enumerate(rows)
    ]
    wrong = sum(dot.prediction != dot.label for dot in dots)
    return {
        "name": "map",
        "figure": interactive.example_map(places, shares, dots, subject.classes),
        "width": "100%",
        "title": "A map of the test examples",
        "text": f"{len(dots)} of {len(chances)} test examples as the network sees them at its last "
        f"stage ({stage}), flattened to the two directions along which they differ most (principal "
        f"components of standardised features). The wrong answers, {wrong} of them, are crosses. A "
        "click on a class in the legend hides it, a double click shows it alone; drag to enlarge, "
        "double-click to go back.",
    }


def _calibration(chances: NDArray[np.float64], labels: Integers) -> dict[str, Any]:
    error = metrics.calibration_error(chances, labels)
    return {
        "name": "calibration",
        "figure": interactive.reliability_map(metrics.reliability(chances, labels)),
        "width": "100%",
        "title": "Is its confidence justified?",
        "text": "Each mark is a bin of test examples of similar confidence, the larger the more of "
        "them. Below the dotted line the model is surer than it is right; expected calibration "
        f"error {error:.1%}.",
    }


def _write(page: Page, charts: list[dict[str, Any]], **values: Any) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.io import to_html

    for number, chart in enumerate(charts):
        # The first chart brings plotly.js; its own name in place of a random id repeats.
        chart["html"] = to_html(
            chart["figure"],
            # Buttons would lie over the legend on a phone, and tips over the text.
            config={"displayModeBar": False, "showTips": False},
            include_plotlyjs=number == 0,
            full_html=False,
            default_width=chart["width"],
            div_id=chart["name"],
        )
    environment = Environment(
        loader=PackageLoader("pipeline.classification.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    html = environment.get_template(f"{FILE}.j2").render(charts=charts, **values)
    with new_file(page.folder / FILE) as temporary:
        temporary.write_text(html, "utf-8")
