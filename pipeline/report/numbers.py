"""How the numbers of a report are chosen and written, and what changed since the last commit."""

import json
import math
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.checks import DIGEST
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.task import About, find

BASELINE = "baseline/"
DEPTHS = ("early", "middle", "late")
Metrics = dict[str, dict[str, Any]]
"""The metrics of each model, and under `DIGEST` what they were measured on."""


class Measure(NamedTuple):
    """How the headline of a model is called and written."""

    name: str
    words: str
    unit: Literal["share", "number"]

    @property
    def points(self) -> str:
        """What to add to a difference."""
        return " points" if self.unit == "share" else ""

    def value(self, value: float) -> str:
        """A value: a share in percent."""
        shown = f"{100 * float(value):.1f}%" if self.unit == "share" else f"{value:.4g}"
        return shown.replace("-", "−")

    def difference(self, value: float) -> str:
        """A difference, with its sign: of shares in percentage points."""
        shown = f"{100 * float(value):+.1f}" if self.unit == "share" else f"{value:+.3g}"
        return shown.replace("-", "−")

    def width(self, value: float) -> str:
        """The width of a spread."""
        return f"{100 * float(value):.1f}" if self.unit == "share" else f"{value:.3g}"

    def interval(self, numbers: Mapping[str, float]) -> str:
        """The 95 % interval."""
        low, high = numbers[f"{self.name}_low"], numbers[f"{self.name}_high"]
        if self.unit == "share":
            return f"{100 * float(low):.1f} to {100 * float(high):.1f}%"
        return f"{self.value(low)} to {self.value(high)}"

    def spread(self, values: Sequence[float]) -> str:
        """Mean and standard deviation over seeds."""
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        if self.unit == "share":
            return f"{100 * mean:.2f} ± {100 * deviation:.2f}%"
        return f"{self.value(mean)} ± {self.value(deviation)}"


def read_metrics(path: Path, made_by: str) -> dict[str, Any]:
    """The metrics that stage `made_by` wrote, and under `DIGEST` what they were measured on.

    Raises:
        PipelineError: the file is missing, is not JSON or does not map names to numbers.
    """
    numbers = read_json(path, made_by)
    if not _are_metrics(numbers):
        raise PipelineError(
            f"{path} does not map names of metrics to numbers and {DIGEST} to a digest; "
            f"delete it and run `dvc repro {made_by}`"
        )
    return dict(numbers)


def _are_metrics(numbers: Any) -> bool:
    return (
        isinstance(numbers, dict)
        and "examples" in numbers
        and isinstance(numbers.get(DIGEST), str)
        and all(isinstance(numbers[name], int | float) for name in numbers if name != DIGEST)
    )


class Headline(NamedTuple):
    """The model's best competitor among the simple rules, and the gain over it."""

    baseline: str
    value: float
    gain: float


def headline(numbers: dict[str, float], about: About) -> Headline | None:
    """The baseline whose headline is best; None where none was measured."""
    metric = about.headline
    found = {
        name.removeprefix(BASELINE).removesuffix(f"/{metric}"): value
        for name, value in numbers.items()
        if name.startswith(BASELINE) and name.endswith(f"/{metric}")
    }
    if not found:
        return None
    best = (min if metric in about.falling else max)(found, key=lambda name: found[name])
    return Headline(best, found[best], numbers[f"{BASELINE}{best}/gain"])


class Seeds(NamedTuple):
    """The same training with several seeds.

    Attributes:
        values: the headline of the model itself and of its repetitions, in the order of `repeated`.
        noise: 95 % of the differences between two such trainings are smaller.
        repeated: seed and numbers of each repetition, as the stage `repeat` wrote them.
        agree: whether the share of answers that are the model's was counted.
        depths: the depths for which there is a CKA with the model.
    """

    values: list[float]
    noise: float
    repeated: dict[int, dict[str, Any]]
    agree: bool
    depths: list[str]


def seeds(
    metrics: Path, name: str, metric: str, numbers: Mapping[str, Any], wanted: Sequence[int]
) -> Seeds | None:
    """What the seed alone changes, from `seeds/<name>-<seed>.json`; None without other seeds.

    Raises:
        PipelineError: the numbers of a seed are missing, malformed or of other test data than
            `numbers`, those of the model.
    """
    if not wanted:
        return None
    folder = metrics / "seeds"
    found = {
        seed: read_metrics(folder / f"{name}-{seed}.json", f"repeat@{name}-{seed}")
        for seed in dict.fromkeys(wanted)
    }
    for seed, one in found.items():
        if one[DIGEST] != numbers[DIGEST]:
            raise PipelineError(
                f"{folder}/{name}-{seed}.json was measured on other test data than "
                f"{metrics}/{name}.json; run `dvc repro repeat@{name}-{seed}`"
            )
    values = [numbers[metric], *(one[metric] for one in found.values())]
    depths = [depth for depth in DEPTHS if all(f"cka/{depth}" in one for one in found.values())]
    agree = all("agreement" in one for one in found.values())
    return Seeds(values, seed_noise(values), found, agree, depths)


def seed_noise(values: Sequence[float]) -> float:
    """Limit below which 95 % of the differences between two runs lie: t · √2 · deviation.

    Student's t, because the deviation itself is estimated from few runs.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * math.sqrt(2) * statistics.stdev(values)


OTHER = "other test data, no comparison"


class Change(NamedTuple):
    """One number of one model before and now, and what to think of it."""

    model: str
    metric: str
    before: float
    now: float
    note: str
    """`OTHER`, `within noise` (it may be chance or the seed's doing) or nothing."""


def committed(metrics: Path, models: list[str]) -> Metrics:
    """The metrics of the last commit, by model; what is missing or malformed there is left out."""
    found = {}
    for model in models:
        command = ["git", "show", f"HEAD:./{model}.json"]
        shown = subprocess.run(command, cwd=metrics, capture_output=True, check=False)
        try:
            numbers = json.loads(shown.stdout)  # empty where git has no such file
        except ValueError:
            continue
        if _are_metrics(numbers):
            found[model] = numbers
    return found


def changes(before: Metrics, now: Metrics, limits: Mapping[str, float]) -> list[Change]:
    """What differs.

    A change of the headline is called noise inside both 95 % intervals, and below the model's limit
    (`Seeds.noise`) where `limits` has one.
    """
    found = []
    for model, numbers in now.items():
        old = before.get(model, {})
        about = find(model=model).about
        for metric in about.watched:
            if metric in numbers and metric in old and numbers[metric] != old[metric]:
                small = abs(numbers[metric] - old[metric]) <= limits.get(model, 0)
                note = ""
                if numbers[DIGEST] != old[DIGEST]:
                    note = OTHER
                elif metric == about.headline and (small or _inside(old, numbers, metric)):
                    note = "within noise"
                found.append(Change(model, metric, old[metric], numbers[metric], note))
    return found


def changes_table(before: Metrics, now: Metrics, limits: Mapping[str, float]) -> str:
    """The changes as a Markdown table, for a pull request."""
    if not before:
        return "The last commit has no metrics to compare with.\n"
    found = changes(before, now, limits)
    if not found:
        return "No metric changed against the last commit.\n"
    lines = ["| model | metric | last commit | now | change |", "|---|---|---:|---:|---:|"]
    for one in found:
        change = f"{one.now - one.before:+.4f}".replace("-", "−")
        change += f" ({one.note})" if one.note else ""
        told = OTHER if one.note == OTHER else change
        lines.append(f"| {one.model} | {one.metric} | {one.before:.4f} | {one.now:.4f} | {told} |")
    return "\n".join(lines) + "\n"


def _inside(old: dict[str, Any], new: dict[str, Any], metric: str) -> bool:
    try:
        return all(
            one[f"{metric}_low"] <= other[metric] <= one[f"{metric}_high"]
            for one, other in ((old, new), (new, old))
        )
    except KeyError:
        return False
