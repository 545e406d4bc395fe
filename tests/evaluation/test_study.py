"""The whole page of a model: complete, true, the same bytes again, and each part on its switch."""

import csv
import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.classification.evaluation.subject import Subject
from pipeline.errors import PipelineError
from pipeline.evaluation.features import untrained
from pipeline.figures.page import Page
from pipeline.prepared import read_card
from pipeline.task import find
from pipeline.training.net import Net
from tests.evaluation.conftest import CPU, DATA, drawn

CURVE = [
    {"epoch": "1", "train_loss": "1.9", "validation_loss": "1.5", "validation_accuracy": "0.61",
     "lr": "0.01"},
    {"epoch": "2", "train_loss": "0.9", "validation_loss": "0.7", "validation_accuracy": "0.83",
     "lr": "0.0"},
]  # fmt: skip
OWN = {
    "image": {"filters.png", "maps.png", "patches.png"},
    "text": {"words.png", "attention.png"},
    "audio": {"evidence.png"},
}
ALWAYS = {"learning_curves.png", "confusion.png", "mistakes.png"}
SHARED = {
    "probes.png", "cka.png", "baselines.png", "reliability.png", "slices.png", "robustness.png",
    "suspects.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def pages(studies, tmp_path_factory):
    found = {}
    for data, study in studies.items():
        folder = tmp_path_factory.mktemp(data)
        found[data] = folder, drawn(study, folder, curve=CURVE)
    return found


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("data", DATA)
def test_every_figure_is_there_is_no_blank_and_is_described(pages, data):
    folder, _ = pages[data]
    listing = json.loads((folder / "figures.json").read_text())
    assert {entry["file"] for entry in listing} == ALWAYS | SHARED | OWN[data]
    assert {path.name for path in folder.glob("*.png")} == {entry["file"] for entry in listing}
    assert (folder / "explore.html").exists()
    for entry in listing:
        assert all(len(entry[key]) > 5 for key in ("title", "text", "alt"))
        assert "nan" not in entry["text"]
        pixels = np.asarray(Image.open(folder / entry["file"]).convert("L"))
        assert pixels.std() > 5, entry["file"]


@pytest.mark.parametrize("data", DATA)
def test_the_numbers_agree_with_the_predictions(pages, studies, data):
    folder, numbers = pages[data]
    study = studies[data]
    table = pq.read_table(folder / "predictions.parquet")
    labels = table["label"].to_numpy()
    right = np.stack(table["probabilities"].to_numpy()).argmax(axis=1) == labels
    assert json.loads(table.schema.metadata[b"classes"]) == study.subject.classes
    assert np.array_equal(labels, study.test.labels)
    assert np.array_equal(table["score"], right)
    assert numbers["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert numbers["accuracy_low"] <= numbers["accuracy"] <= numbers["accuracy_high"]
    pairs = rows(folder / "confusion.csv")
    assert np.mean([row["actual"] == row["predicted"] for row in pairs]) == right.mean()
    assert list(numbers) == sorted(numbers)
    assert all(np.isfinite(value) for value in numbers.values())


@pytest.mark.parametrize("data", DATA)
def test_what_was_learnt_shows_in_the_probes(pages, studies, data):
    _, numbers = pages[data]
    study = studies[data]
    assert numbers["accuracy"] > 0.6
    assert numbers["probe/late/accuracy"] >= numbers["probe_untrained/late/accuracy"] - 0.03
    majority = study.test.labels == np.bincount(study.train.labels).argmax()
    assert numbers["baseline/majority class/accuracy"] == pytest.approx(majority.mean(), abs=1e-6)
    assert majority.mean() < numbers["accuracy"]


def test_planted_words_are_what_the_transformers_answers_come_from(pages):
    folder, _ = pages["text"]
    listing = json.loads((folder / "figures.json").read_text())
    alt = next(entry["alt"] for entry in listing if entry["file"] == "words.png")
    strongest = {part.rsplit(" ", 1)[1] for part in alt.split("; ") if "strongest" in part}
    assert strongest & {"dull", "tired", "awful", "lifeless", "fine", "warm", "lovely"}


def test_robustness_falls_with_severity(pages):
    table = rows(pages["image"][0] / "robustness.csv")
    noise = [float(row["accuracy"]) for row in table if row["kind"] == "noise"]
    assert len(noise) == 5
    assert noise[0] > noise[-1] + 0.2


def test_the_slices_of_a_kind_hold_all_examples(pages, studies):
    table = rows(pages["audio"][0] / "slices.csv")
    assert {row["kind"] for row in table} >= {"duration", "speed", "pitch"}
    speeds = [int(row["examples"]) for row in table if row["kind"] == "speed"]
    assert sum(speeds) == len(studies["audio"].test)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "data", [one if one == "text" else pytest.param(one, marks=pytest.mark.slow) for one in DATA]
)
def test_the_same_model_gives_the_same_bytes(pages, studies, tmp_path, data):
    torch.manual_seed(123)
    np.random.seed(5)
    assert drawn(studies[data], tmp_path, curve=CURVE) == pages[data][1]
    assert digests(tmp_path) == digests(pages[data][0])


def test_parts_can_be_switched_off(studies, tmp_path):
    parts = studies["image"].parts
    off = parts.model_copy(update={name: False for name, on in parts if on is True})
    numbers = drawn(studies["image"], tmp_path, parts=off)
    assert {path.name for path in tmp_path.glob("*.png")} == {"confusion.png", "mistakes.png"}
    assert not (tmp_path / "explore.html").exists()
    assert not any("/" in name and name.split("/")[0] in ("probe", "baseline") for name in numbers)


@pytest.mark.parametrize("data", DATA)
def test_raw_examples_are_encoded_as_the_data_modules_do(studies, folders, data):
    study = studies[data]
    subject, net = study.subject, study.subject.net
    batches = net.task.data.load(folders[data], "test", net, batch_size=4, device=subject.device)
    index = batches.order(0)[0]
    expected = next(iter(batches.epoch(0)))
    found = subject.encode(study.test.take(index.numpy()).raw)
    assert found.keys() == expected.inputs.keys()
    for name, value in found.items():
        assert torch.equal(value, expected.inputs[name]), name
    assert np.array_equal(study.test.labels[index.numpy()], expected.targets)


def test_answers_come_in_the_order_of_the_examples(studies):
    subject = studies["text"].subject
    some = studies["text"].test.take([7, 3, 11, 0])
    alone = np.concatenate([subject.logits([sentence]) for sentence in some.raw])
    assert np.allclose(subject.logits(some.raw), alone, atol=1e-5)


def test_an_answer_that_is_no_number_stops_with_its_row(studies, monkeypatch):
    logits = np.zeros((5, 2), np.float32)
    monkeypatch.setattr(Subject, "features", lambda *_: {"logits": logits})
    subject = studies["image"].subject
    assert subject.logits([]) is logits
    logits[3, 1] = np.nan
    with pytest.raises(PipelineError, match=r"1 of 5 examples \(first: row 3\)"):
        subject.logits([])


@pytest.mark.parametrize("data", DATA)
def test_the_data_report_counts_and_shows(folders, tmp_path, data):
    first, second = tmp_path / "first", tmp_path / "second"
    counts = _data_report(folders[data], first)
    assert counts == _data_report(folders[data], second)
    assert digests(first) == digests(second)
    table = rows(first / "balance.csv")
    assert sum(int(row["rows"]) for row in table if row["split"] == "test") == counts["rows/test"]
    findings = json.loads((first / "findings.json").read_text())
    assert [name for name, _ in findings] == [
        "Rows in a class",
        "Exact duplicates",
        "Near duplicates",
        "Sizes in training",
    ]
    assert {entry["file"] for entry in json.loads((first / "figures.json").read_text())} == {
        "balance.png",
        "samples.png",
    }


def _data_report(data, folder):
    folder.mkdir()
    page = Page(folder)
    counts = find(data=data.name).data_report.data_report(data, read_card(data), page)
    page.close("data")
    return counts


def repetition(first: Net, second: Net, folder) -> dict[str, float]:
    asked: Any = SimpleNamespace(
        data=str(folder), weights="models", seed=0, batch_size=64, compared=40
    )
    return first.task.show.repetition(first, second, asked, CPU)


@pytest.mark.parametrize("data", DATA)
def test_a_model_beside_itself_differs_in_nothing(studies, folders, data):
    net = studies[data].subject.net
    found = repetition(net, net, folders[data])
    assert [found[name] for name in ("difference", "difference_low", "difference_high")] == [0] * 3
    assert (found["agreement"], found["p_value"]) == (1, 1)
    depths = [value for name, value in found.items() if name.startswith("cka/")]
    assert len(depths) >= 2
    assert depths == pytest.approx([1] * len(depths))


def test_an_untrained_network_beside_the_model_is_worse_and_unlike(studies, folders):
    study = studies["image"]
    net = study.subject.net
    found = repetition(net, replace(net, module=untrained(net.module, 1)), folders["image"])
    assert found["difference"] == pytest.approx(found["accuracy"] - study.right.mean(), abs=1e-5)
    assert found["difference_high"] < -0.3
    assert found["p_value"] < 0.001
    assert found["agreement"] < 0.5
    assert found["cka/late"] < 0.9
