"""Compare a run with its repetition: outputs, weights tensor by tensor, metrics point by point."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import digest
from pipeline.tracking import root
from pipeline.tracking.reader import Reader, Recorded, Series

TOLERANCE = 0.01
"""Of each value, relative to it where it is above 1: what a thread count or a device may change."""

IDENTITY = {"data.md5": "dataset.json", "weights.md5": "model.safetensors"}
"""The tag that names what a run wrote, and the file whose md5 it is."""


@dataclass
class Result:
    """How a run compares with its repetition.

    Attributes:
        same_bytes: the outputs are equal; None for a stage whose outputs have no name by content.
        tensors: largest difference of each weight tensor, where both models were at hand.
        parts_at: first step at which a metric differs, and that metric with both values.
        distance: largest difference of a metric, as a share of `TOLERANCE`.
        points: points of metrics compared.
        reasons: what may have caused a difference.
    """

    same_bytes: bool | None
    tensors: dict[str, float] = field(default_factory=dict)
    parts_at: tuple[int, str, float, float] | None = None
    distance: float = 0.0
    points: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`identical`, `within tolerance` or `different`."""
        if self.same_bytes is not False and self.parts_at is None:
            return "identical"
        return "within tolerance" if self.points and self.distance <= 1 else "different"

    def __str__(self) -> str:
        if self.verdict == "identical":
            what = "the outputs and " if self.same_bytes else ""
            return f"identical: {what}{self.points} points of metrics are equal to the bit"
        said = [f"metrics differ by {self.distance * TOLERANCE:.2g} at most (of {TOLERANCE})"]
        if self.parts_at:
            step, name, before, now = self.parts_at
            said.insert(0, f"{name} parts at step {step} ({before:.9g} → {now:.9g})")
        if self.tensors:
            worst = max(self.tensors, key=lambda name: self.tensors[name])
            count = sum(value > 0 for value in self.tensors.values())
            said.append(
                f"{count} of {len(self.tensors)} tensors differ, by {self.tensors[worst]:.2g} "
                f"at most ({worst})"
            )
        elif self.same_bytes is False:
            said.append("the outputs differ")
        why = [f"  may be why: {reason}" for reason in self.reasons]
        return "\n".join(
            [f"{self.verdict}: {'; '.join(said)}", *(why or ["  no reason for it is known"])]
        )


@dataclass(frozen=True)
class Repetition:
    """A run that was repeated.

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


def compare(before: Recorded, after: Repetition, reader: Reader, folder: Path) -> Result:
    """Compare outputs, weights tensor by tensor, and metrics point by point."""
    result = Result(None, reasons=[*after.reasons, *_differences(before.card, after.run.card)])
    output = after.tree / after.config.get("output", ".")
    for tag, name in IDENTITY.items():
        if tag in before.tags and (output / name).exists():
            result.same_bytes = before.tags[tag] == digest(output / name)
            if not result.same_bytes and tag == "weights.md5":
                theirs = find(root() / str(before.config["output"]) / name, before.tags[tag])
                theirs = theirs or reader.weights(before.run_id, folder)
                result.tensors = _tensors(theirs, output / name) if theirs else {}
    _compare_series(reader.series(before.run_id), after.reader.series(after.run.run_id), result)
    if result.same_bytes is False and "data.md5" in before.tags:
        result.distance = math.inf  # of prepared data there is no nearly the same
    return result


def find(path: Path, md5: str) -> Path | None:
    """The path, if a file of that md5 is there."""
    return path if path.is_file() and digest(path) == md5 else None


def _compare_series(before: Series, after: Series, result: Result) -> None:
    """Metrics that only one of the two has, such as a later evaluation's, are passed over."""
    parts = []
    for name in before.keys() & after.keys():
        ours, theirs = dict(before[name]), dict(after[name])
        for step in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(step, math.nan), theirs.get(step, math.nan)
            result.points += 1
            if a == b or (math.isnan(a) and math.isnan(b) and step in ours and step in theirs):
                continue
            parts.append((step, name, a, b))
            far = abs(a - b) / max(1.0, abs(a)) / TOLERANCE
            result.distance = max(result.distance, math.inf if math.isnan(far) else far)
    result.parts_at = min(parts, default=None)


def _tensors(before: Path, after: Path) -> dict[str, float]:
    """Largest absolute difference of each tensor; infinite where the shapes differ."""
    from safetensors.torch import load_file

    ours, theirs = load_file(before), load_file(after)
    found = {}
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape:
            found[name] = math.inf
        else:
            found[name] = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    return found


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the results depend on and the two device cards say differently."""
    from pipeline.machine import NUMERICS
    from pipeline.tracking.operations import flat

    ours, theirs = (flat({name: card.get(name) for name in NUMERICS}) for card in (before, after))
    found = [
        f"{name}: {ours.get(name)} → {theirs.get(name)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if not before.get("deterministic", True):
        found.append("the run allowed operations that don't repeat (common.deterministic=false)")
    return found
