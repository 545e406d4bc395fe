"""The files of a whole pipeline, small, for the report's tests."""

import json
import struct
import zlib
from pathlib import Path

import pytest

from pipeline.checks import DIGEST
from pipeline.settings import Report

NUMBERS = {
    "accuracy": 0.982, "accuracy_low": 0.97, "accuracy_high": 0.991, "macro_f1": 0.981,
    "loss": 0.0612, "ece": 0.041, "ece_scaled": 0.01, "examples": 1000, DIGEST: "cd" * 32,
    "precision/a<b": 0.9, "recall/a<b": 0.8, "f1/a<b": 0.85,
    "precision/c|d": 0.7, "recall/c|d": 0.6, "f1/c|d": 0.65,
    "baseline/majority class/accuracy": 0.1, "baseline/majority class/gain": 0.882,
    "baseline/pixels/accuracy": 0.907, "baseline/pixels/gain": 0.075,
}  # fmt: skip
SUMMARY = {
    "columns": [["Worst slice", "class “b”: 70.0%"], ["Calibration error", "4.1% → 1.0%"]],
    "notes": {"Calibration error": "as trained → scaled"},
    "facts": [["macro F1", "98.1%"], ["loss", "0.0612 nats"]],
    "tables": [
        {"caption": "By class", "columns": ["Class", "Precision", "Taken for"],
         "rows": [["a<b", "90.0%", "c|d"], ["c|d", "70.0%", "a<b"]]},
    ],
}  # fmt: skip
MODELS = {"cnn": "image", "transformer": "text", "rnn": "audio"}


def png(width: int, height: int) -> bytes:
    """A white PNG of one colour channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * width) * height)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def sources(tmp_path: Path) -> Report:
    """The files of a whole pipeline, with names and captions that mean something in HTML."""
    figure = {"file": "confusion.png", "title": "Mix-ups", "text": "<b>& more", "alt": 'a "b"'}
    for model, task in MODELS.items():
        plots, weights, data = (
            tmp_path / part for part in (f"plots/{model}", f"models/{model}", f"data/{task}")
        )
        extra = tmp_path / "plots" / "data" / task
        for folder in (plots, weights, data, extra, tmp_path / "metrics"):
            folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "metrics" / f"{model}.json").write_text(json.dumps(NUMBERS))
        for folder in (plots, extra):
            (folder / "confusion.png").write_bytes(png(1200, 300))
            (folder / "figures.json").write_text(json.dumps([figure]))
        (extra / "findings.json").write_text(json.dumps([["Repeats", "3 pairs"]]))
        (plots / "summary.json").write_text(json.dumps(SUMMARY))
        (weights / "model.safetensors").write_bytes(b"weights")
        description = {"settings": {"name": "net", "channels": [1, 2], "extra": {"x": 1}}}
        (weights / "model.json").write_text(json.dumps({**description, "sha256": "ab" * 32}))
        split = {"rows": 10, "sha256": "cd" * 32}
        card = {
            "task": task, "name": f"{task} set", "source": "a <source>", "licence": "none",
            "citation": "nobody", "facts": {"classes": ["a<b", "c|d"], "sample_rate": 8000},
            "splits": dict.fromkeys(("train", "validation", "test"), split),
        }  # fmt: skip
        (data / "dataset.json").write_text(json.dumps(card))
    return Report.model_construct(
        metrics=tmp_path / "metrics", plots=tmp_path / "plots", models=tmp_path / "models",
        data={model: tmp_path / "data" / task for model, task in MODELS.items()},
        data_plots=tmp_path / "plots" / "data", seeds=[],
        html=tmp_path / "reports" / "report.html", markdown=tmp_path / "reports" / "report.md",
    )  # fmt: skip
