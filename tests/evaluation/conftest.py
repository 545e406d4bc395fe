"""Small real data sets and models, trained for a moment, so that there is something to see."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline import prepared
from pipeline.classification.evaluation.predictions import Predictions
from pipeline.classification.evaluation.study import Data
from pipeline.classification.evaluation.subject import Subject
from pipeline.classification.examples import read_examples
from pipeline.settings import RNN, AudioSource, ConvNet, ImageSource, Parts, TextSource
from pipeline.tasks.image_classification import model as cnn
from pipeline.tasks.image_classification.prepare import prepare as prepare_image
from pipeline.tasks.speech_classification import model as rnn
from pipeline.tasks.speech_classification.prepare import prepare as prepare_audio
from pipeline.tasks.text_classification.prepare import prepare as prepare_text

CPU = torch.device("cpu")
WORDS = {"NEGATIVE": ["dull", "tired", "awful", "lifeless"], "POSITIVE": ["fine", "warm", "lovely"]}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A prepared data set of each modality: MNIST digits, sentences of a grammar, spoken digits."""
    root = tmp_path_factory.mktemp("data")
    shares = {"validation": 0.1, "test": 0.2}
    source = ImageSource(name="digits", kind="mnist5k", folder=None, **shares)
    prepared.write(root / "image", *prepare_image(source, 0, 300))
    generator = np.random.default_rng(0)
    with (root / "texts.csv").open("w") as file:
        file.write("text,label\n")
        for row in range(400):
            label = ("NEGATIVE", "POSITIVE")[row % 2]
            words = [f"filler{generator.integers(300)}" for _ in range(generator.integers(4, 14))]
            words.insert(int(generator.integers(len(words))), str(generator.choice(WORDS[label])))
            file.write(f"{' '.join(words)} {row} .,{label}\n")
    texts = TextSource(
        name="grammar", kind="csv", subset=None, file=str(root / "texts.csv"), **shares
    )
    prepared.write(root / "text", *prepare_text(texts, 0, None))
    spoken = AudioSource(
        name="spoken", kind="espeak", sample_rate=8000, clips=600, folder=None, **shares
    )
    prepared.write(root / "audio", *prepare_audio(spoken, 0, None))
    return {task: root / task for task in ("image", "text", "audio")}


@pytest.fixture(scope="session")
def parts() -> Parts:
    """Everything on, small."""
    return Parts(
        probes=True, similarity=True, pictures=True, baselines=True, calibration=True, slices=True,
        robustness=True, suspects=True, exploration=True, probe_train=150, probe_test=80,
        pictured=60, damaged=60, suspected=10,
    )  # fmt: skip


@pytest.fixture(scope="session")
def subjects(folders) -> dict[str, tuple[Subject, Data]]:
    """A trained subject of each modality with its data and predictions."""
    torch.manual_seed(0)
    found = {}
    net = cnn.build(
        ConvNet(name="convnet", channels=[16, 32], depth=1, dropout=0.0),
        channels=1, height=28, width=28, classes=10, mean=[0.13], std=[0.31],
    )  # fmt: skip
    found["image"] = _study("image", folders, net, steps=150)
    spoken = rnn.build(
        RNN(cell="gru", mels=20, stride=2, hidden=24, layers=2, dropout=0.0),
        sample_rate=8000, classes=10,
    )  # fmt: skip
    found["audio"] = _study("audio", folders, spoken, steps=60)
    reader, tokenizer = _small_bert(folders["text"])
    found["text"] = _study("text", folders, reader, steps=50, tokenizer=tokenizer)
    return found


def _study(task, folders, model: nn.Module, steps: int, tokenizer=None) -> tuple[Subject, Data]:
    card = prepared.read_card(folders[task])
    subject = Subject(
        task, model, card.classes, CPU, 64, tokenizer=tokenizer, max_length=32,
        sample_rate=card.sample_rate,
    )  # fmt: skip
    train, validation, test = (
        read_examples(folders[task], split) for split in ("train", "validation", "test")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        batch = train.take(generator.choice(len(train), 48, replace=False))
        output = model(**subject.encode(batch.raw))
        logits = output if task != "text" else output.logits
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels.copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held_out = [Predictions(subject.logits(part.raw), part.labels) for part in (validation, test)]
    return subject, Data(train, validation, test, *held_out)


def _small_bert(folder: Path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    table: pa.Table = prepared.read_split(folder, "train", "text")[1]
    words = sorted({word for line in table["text"].to_pylist() for word in line.lower().split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64, num_labels=2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config), tokenizer
