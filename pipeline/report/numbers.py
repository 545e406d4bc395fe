"""How the numbers of a report are chosen and written, and what changed since the last commit."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

BASELINE = "baseline/"


def percent(value: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * float(value):.{digits}f}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * float(value):+.1f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """A 95 % interval of a share."""
    return f"{100 * float(low):.1f} to {100 * float(high):.1f}%"


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.2f} ± {100 * deviation:.2f}%"


class Headline(NamedTuple):
    """The model's best competitor among the simple rules, if they were measured."""

    baseline: str | None
    accuracy: float | None
    gain: float | None


def headline(numbers: dict[str, float]) -> Headline:
    """The best baseline of a model's metrics and the gain over it."""
    found = {
        name.removeprefix(BASELINE).removesuffix("/accuracy"): value
        for name, value in numbers.items()
        if name.startswith(BASELINE) and name.endswith("/accuracy")
    }
    if not found:
        return Headline(None, None, None)
    best = max(found, key=lambda name: found[name])
    return Headline(best, found[best], numbers[f"{BASELINE}{best}/gain"])


def seeds(metrics: Path, name: str) -> list[float]:
    """Accuracies of the same model over seeds, from `<name>-seed-<n>.json`; empty without any."""
    return [
        float(json.loads(path.read_text(encoding="utf-8"))["accuracy"])
        for path in sorted(metrics.glob(f"{name}-seed-*.json"))
    ]


class Change(NamedTuple):
    """One number of one model before and now; `noise` if an interval can't tell them apart."""

    model: str
    metric: str
    before: float
    now: float
    noise: bool


SHOWN = ("accuracy", "macro_f1", "loss", "ece", "worst_slice/accuracy")


def committed(metrics: Path, models: list[str]) -> dict[str, dict[str, float]]:
    """The metrics of the last commit, by model; those that git does not have are left out."""
    found = {}
    for model in models:
        path = metrics / f"{model}.json"
        shown = subprocess.run(
            ["git", "show", f"HEAD:./{path.name}"],
            cwd=metrics,
            capture_output=True,
            check=False,
        )
        if shown.returncode == 0:
            found[model] = json.loads(shown.stdout)
    return found


def changes(before: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> list[Change]:
    """What differs. A change of accuracy inside both 95 % intervals is called noise."""
    found = []
    for model, numbers in now.items():
        old: dict[str, Any] = before.get(model, {})
        for metric in SHOWN:
            if metric in numbers and metric in old and numbers[metric] != old[metric]:
                noise = metric == "accuracy" and _inside(old, numbers)
                found.append(Change(model, metric, old[metric], numbers[metric], noise))
    return found


def changes_table(before: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> str:
    """The changes as a Markdown table, for a pull request."""
    if not before:
        return "The last commit has no metrics to compare with.\n"
    found = changes(before, now)
    if not found:
        return "No metric changed against the last commit.\n"
    lines = ["| model | metric | last commit | now | change |", "|---|---|---:|---:|---:|"]
    for one in found:
        note = " (within noise)" if one.noise else ""
        change = f"{one.now - one.before:+.4f}".replace("-", "−")
        lines.append(
            f"| {one.model} | {one.metric} | {one.before:.4f} | {one.now:.4f} | {change}{note} |"
        )
    return "\n".join(lines) + "\n"


def _inside(old: dict[str, float], new: dict[str, float]) -> bool:
    try:
        return (
            old["accuracy_low"] <= new["accuracy"] <= old["accuracy_high"]
            and new["accuracy_low"] <= old["accuracy"] <= new["accuracy_high"]
        )
    except KeyError:
        return False
