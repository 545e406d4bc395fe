"""The presets of conf/, read as Hydra reads them, without Hydra."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.task import find

CONF = Path(__file__).parents[2] / "conf"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def preset(group: str, name: str, /, **changes: object) -> Any:
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(find(model=group).settings.Model).validate_python({**values, **changes})


def fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have text classifiers attend on the CPU as on a GPU."""
    from pipeline.tasks.text_classification import model as text_classification

    monkeypatch.setattr(text_classification, "is_fused", lambda _device: True)
