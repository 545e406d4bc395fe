"""Small real data sets and models, trained for a moment, so that there is something to see."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from pipeline import prepared
from pipeline.checks import measured
from pipeline.classification.evaluation.study import Study
from pipeline.classification.settings import Parts
from pipeline.evaluation.intervals import rounded
from pipeline.figures.page import fill
from pipeline.task import find, tasks
from pipeline.training import net as nets
from pipeline.training.net import logits_of

SOURCES: dict[str, dict[str, Any]] = {
    "image": {"kind": "mnist5k", "folder": None},
    "text": {"kind": "csv", "subset": None},
    "audio": {"kind": "espeak", "sample_rate": 8000, "clips": 600, "folder": None},
}
ROWS = {"image": 300, "text": None, "audio": None}
MODELS: dict[str, dict[str, Any]] = {
    "image": {"name": "convnet", "channels": [16, 32], "depth": 1, "dropout": 0.0},
    "text": {
        "source": "folder", "sha256": None, "revision": None, "max_length": 32, "dropout": 0.0,
        "pretrained": False,
    },
    "audio": {"cell": "gru", "mels": 20, "stride": 2, "hidden": 24, "layers": 2, "dropout": 0.0},
}  # fmt: skip
CPU: Any = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)
STEPS = {"image": 150, "text": 50, "audio": 60}
DATA = tuple(task.about.data for task in tasks() if task.about.data in SOURCES)
"""The data sets of all classifiers."""
WORDS = {"NEGATIVE": ["dull", "tired", "awful", "lifeless"], "POSITIVE": ["fine", "warm", "lovely"]}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A prepared data set of each task: MNIST digits, sentences of a grammar, spoken digits."""
    root = tmp_path_factory.mktemp("data")
    SOURCES["text"]["file"] = str(_sentences(root / "texts.csv"))
    for data in DATA:
        task = find(data=data)
        source = task.settings.Source(name=data, validation=0.1, test=0.2, **SOURCES[data])
        prepared.write(root / data, task.name, task.prepare.prepare(source, 0, ROWS[data]), seed=0)
    return {data: root / data for data in DATA}


def _sentences(path: Path) -> Path:
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("text,label\n")
        for row in range(400):
            label = ("NEGATIVE", "POSITIVE")[row % 2]
            words = [f"filler{generator.integers(300)}" for _ in range(generator.integers(4, 14))]
            words.insert(int(generator.integers(len(words))), str(generator.choice(WORDS[label])))
            file.write(f"{' '.join(words)} {row} .,{label}\n")
    return path


@pytest.fixture(scope="session")
def studies(folders, tmp_path_factory) -> dict[str, Study]:
    """What evaluation has of a trained model of each task, with every part on, small."""
    torch.manual_seed(0)
    return {data: _study(folders[data], tmp_path_factory.mktemp("encoder")) for data in DATA}


def _study(folder: Path, encoder: Path) -> Study:
    task, facts = find(data=folder.name), prepared.read_card(folder).facts
    settings = MODELS[folder.name]
    if folder.name == "text":
        settings = {**settings, "name": str(_small_bert(encoder, folder))}
    model = TypeAdapter(task.settings.Model).validate_python(settings)
    parts = Parts(
        probes=True, similarity=True, pictures=True, baselines=True, calibration=True, slices=True,
        robustness=True, suspects=True, exploration=True, probe_train=150, probe_test=80,
        pictured=60, damaged=60, suspected=10,
    )  # fmt: skip
    asked: Any = SimpleNamespace(
        data=str(folder), weights="models", model=folder.name, seed=0, batch_size=64, mistakes=6,
        parts=parts,
    )  # fmt: skip
    study: Study = task.show.study(nets.build(task, model, facts), asked, CPU, [])
    _train(study, STEPS[folder.name])
    return study


def _train(study: Study, steps: int) -> None:
    subject, train = study.subject, study.train
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=5e-3)
    generator = np.random.default_rng(0)
    subject.model.train()
    for _ in range(steps):
        batch = train.take(generator.choice(len(train), 48, replace=False))
        logits = logits_of(subject.model(**subject.encode(batch.raw)))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels.copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    subject.model.eval()


def _small_bert(folder: Path, data: Path) -> Path:
    """The config and the tokenizer of an encoder that knows the words of a data set."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    table: pa.Table = prepared.read_split(data, "train", "text_classification")[1]
    words = sorted({word for line in table["text"].to_pylist() for word in line.lower().split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def drawn(study: Study, folder: Path, **changes: Any) -> dict[str, float]:
    """The whole page of a model, as the stage draws it; returns its numbers."""
    fresh = replace(study, **changes, control=None)
    task = fresh.subject.net.task
    return rounded(measured(task, "PARTS", fill(folder, task.show.PARTS, fresh, fresh.parts)))
