"""A run and its reproduction: outputs, weights tensor by tensor, metrics point by point."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import digest
from pipeline.nested import differences
from pipeline.tracking import root
from pipeline.tracking.reader import Reader, Recorded, Series

TOLERANCE = 0.01
"""Of each value, relative to it where it is above 1: what a thread count or a device may change."""

WEIGHTS = "model.safetensors"


@dataclass
class Result:
    """How a run compares with its reproduction.

    Attributes:
        same_bytes: the outputs are equal; None for a stage whose outputs have no name by content.
        differ: the outputs that are not.
        nearly: whether outputs can be nearly the same; of prepared data there is no such thing.
        tensors: largest difference of each weight tensor, where both models were at hand; None
            where it can't be measured.
        parts_at: first step at which a metric differs, and that metric with both values; None for
            one that has no point there.
        distance: largest difference of a metric, as a share of `TOLERANCE`.
        points: points of metrics that both have, compared.
        missing: points that only one of the two has, of metrics that both have.
        unmeasured: points that differ by no finite number.
        alone: metrics that only one of the two has, such as a later evaluation's: not compared.
        reasons: what may have caused a difference.
    """

    same_bytes: bool | None
    differ: list[str] = field(default_factory=list)
    nearly: bool = True
    tensors: dict[str, float | None] = field(default_factory=dict)
    parts_at: tuple[int, str, float | None, float | None] | None = None
    distance: float = 0.0
    points: int = 0
    missing: int = 0
    unmeasured: int = 0
    alone: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`identical`, `within tolerance` or `different`."""
        if self.same_bytes is not False and self.parts_at is None:
            return "identical"
        far = self.missing or self.unmeasured or self.distance > 1 or not self.nearly
        return "different" if far or not self.points else "within tolerance"

    def __str__(self) -> str:
        alone = f"only one of the two has {', '.join(self.alone[:3])}" if self.alone else ""
        if len(self.alone) > 3:
            alone += f" and {len(self.alone) - 3} more metrics"
        if self.verdict == "identical":
            what = ["the outputs"] if self.same_bytes else []
            what += [f"{self.points} points of metrics"] if self.points else []
            text = f"identical: {' and '.join(what)} are equal to the bit"
            return f"{text}; not compared: {alone}" if alone else text
        said = []
        if self.parts_at:
            step, name, before, now = self.parts_at
            said.append(f"{name} parts at step {step} ({_said(before)} → {_said(now)})")
        if self.points:
            said.append(f"metrics differ by {self.distance * TOLERANCE:.2g} at most")
            said[-1] += f" (of {TOLERANCE})"
        if self.unmeasured:
            said.append(f"{self.unmeasured} points differ by no finite number")
        if self.missing:
            said.append(f"{self.missing} points are missing in one of the two")
        if measured := {name: far for name, far in self.tensors.items() if far is not None}:
            worst = max(measured, key=lambda name: measured[name])
            count = sum(value > 0 for value in measured.values())
            said.append(
                f"{count} of {len(self.tensors)} tensors differ, by {measured[worst]:.2g} "
                f"at most ({worst})"
            )
        if other := [name for name, far in self.tensors.items() if far is None]:
            said.append(f"{len(other)} tensors have other shapes or are not finite ({other[0]})")
        if self.differ and not self.tensors:
            said.append(f"other bytes in {', '.join(self.differ)}")
        if alone:
            said.append(f"not compared: {alone}")
        why = [f"  may be why: {reason}" for reason in self.reasons]
        return "\n".join(
            [f"{self.verdict}: {'; '.join(said)}", *(why or ["  no reason for it is known"])]
        )


@dataclass(frozen=True)
class Reproduction:
    """A run that was run again.

    Attributes:
        tree: the worktree with its outputs.
        config: its config, with paths in that worktree.
        reader: of the store it logged to.
        run: what it logged.
        reasons: what could not be restored.
    """

    tree: Path
    config: dict[str, Any]
    reader: Reader
    run: Recorded
    reasons: list[str]


def judge(before: Recorded, after: Reproduction, reader: Reader, folder: Path) -> Result:
    """Compare outputs, weights tensor by tensor, and metrics point by point.

    Raises:
        PipelineError: the two have nothing in common that could be compared.
    """
    result = Result(None, reasons=[*after.reasons, *_differences(before, after.run)])
    ours, theirs = _outputs(before), _outputs(after.run)
    if ours:
        result.differ = [before.config[key] for key in ours if ours[key] != theirs.get(key)]
        result.same_bytes = not result.differ
        result.nearly = result.same_bytes or "data.md5" not in before.tags
    md5 = before.tags.get("weights.md5")
    if md5 and md5 != after.run.tags.get("weights.md5"):
        now = after.tree / after.config["output"] / WEIGHTS
        here = root() / before.config["output"] / WEIGHTS
        then = here if has_md5(here, md5) else reader.weights(before.run_id, folder)
        result.tensors = _tensors(then, now) if then else {}
    _compare_series(reader.series(before.run_id), after.reader.series(after.run.run_id), result)
    if result.same_bytes is None and not result.points:
        raise PipelineError(
            f"run {before.run_id} and its reproduction have neither outputs with a digest nor "
            "metrics in common; nothing was compared"
        )
    return result


def _outputs(run: Recorded) -> dict[str, str]:
    """The digest of each output that a run recorded, by the setting that names the output."""
    paths = {key: Path(value) for key, value in run.config.items() if isinstance(value, str)}
    tags = {key: f"output.{path.as_posix()}" for key, path in paths.items()}
    return {key: run.tags[tag] for key, tag in tags.items() if tag in run.tags}


def has_md5(path: Path, md5: str) -> bool:
    """Whether a file of that md5 is there."""
    return path.is_file() and digest(path) == md5


def _compare_series(before: Series, after: Series, result: Result) -> None:
    parts: list[tuple[int, str, float | None, float | None]] = []
    result.alone = sorted(before.keys() ^ after.keys())
    for name in sorted(before.keys() & after.keys()):
        ours, theirs = dict(before[name]), dict(after[name])
        for step in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(step), theirs.get(step)
            if a is None or b is None:
                result.missing += 1
                parts.append((step, name, a, b))
                continue
            result.points += 1
            if a == b or (math.isnan(a) and math.isnan(b)):
                continue
            parts.append((step, name, a, b))
            far = abs(a - b) / max(1.0, abs(a)) / TOLERANCE
            if math.isfinite(far):
                result.distance = max(result.distance, far)
            else:
                result.unmeasured += 1
    result.parts_at = min(parts, default=None, key=lambda part: part[:2])


def _said(value: float | None) -> str:
    """A metric's value in words where it is no number."""
    if value is None:
        return "no point"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:.9g}"


def _tensors(before: Path, after: Path) -> dict[str, float | None]:
    """Largest absolute difference of each tensor; None where it can't be measured."""
    from safetensors.torch import load_file

    ours, theirs = load_file(before), load_file(after)
    found: dict[str, float | None] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape:
            found[name] = None
        else:
            far = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
            found[name] = far if math.isfinite(far) else None
    return found


def _differences(before: Recorded, after: Recorded) -> list[str]:
    """What the results depend on and the two runs say differently."""
    from pipeline.machine import NUMERICS

    ours, theirs = (
        {name: run.card.get(name) for name in NUMERICS}
        | {name: md5 for name, md5 in run.tags.items() if re.fullmatch(r"input\..+\.md5", name)}
        for run in (before, after)
    )
    found = [f"{name}: {old} → {new}" for name, old, new in differences(ours, theirs)]
    if not before.card.get("deterministic", True):
        found.append("the run allowed operations that don't repeat (deterministic: false)")
    return found
