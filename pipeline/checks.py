"""What is asked of every task: names of its own, and numbers that are finite."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from pipeline.errors import PipelineError
from pipeline.task import Task, tasks

DIGEST = "examples_sha256"
"""Beside the metrics of a test: of the split's file. Numbers of two tests compare where it is the
same."""


def refuse_shared_names() -> None:
    """Make sure that no two tasks have one name for what each has its own of.

    Raises:
        PipelineError: names both.
    """
    taken: dict[tuple[str, str], tuple[Task, str, Any]] = {}
    for task in tasks():
        about, parts = task.about, task.settings.Parts.model_fields
        names: list[tuple[str, str, str, Any]] = [
            ("conf", about.data, "ABOUT.data", task),
            ("conf", about.model, "ABOUT.model", task),
            ("stages", about.stage, "ABOUT.stage", task),
            ("registered", about.registered, "ABOUT.registered", task),
            # a switch may be that of several tasks, if it is of one type
            *(("parts", name, "a setting of Parts", (field.annotation, field.metadata))
              for name, field in parts.items()),
        ]  # fmt: skip
        for kind, name, what, holder in names:
            other, its, held = taken.setdefault((kind, name), (task, what, holder))
            if (what, holder) != (its, held):
                raise PipelineError(
                    f"{name!r} is {what} in {task} and {its} in {other}; rename one of them"
                )


def finite(numbers: Any, said: str, hint: str = "") -> dict[str, float]:
    """Numbers as a task gives them.

    Args:
        numbers: by name.
        said: what gave them, for the message.
        hint: what else may help, its end.

    Raises:
        PipelineError: one of them is no finite number.
    """
    if not isinstance(numbers, Mapping):
        raise PipelineError(f"{said}: is {numbers!r:.60}; it has to map names to numbers")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise PipelineError(
                f"{said}: {name} is {value!r:.60}; it has to be a finite number{hint}"
            )
    return dict(numbers)


def measured(task: Task, what: str, numbers: Any, *more: str) -> dict[str, float]:
    """Numbers of a test as `what` of the task's `show.py` gives them.

    Raises:
        PipelineError: one of them is no finite number; the headline, its interval, `examples` or
            one of `more` is missing.
    """
    said, headline = f"{task}/show.py, {what}", task.about.headline
    found = finite(numbers, said)
    for name in (headline, f"{headline}_low", f"{headline}_high", "examples", *more):
        if name not in found:
            raise PipelineError(f"{said}: {name} is missing; it has to be among the numbers")
    return found
