"""Pictures of what a network sees: filters, maps, patches; attention, words; evidence in time."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.evaluation import explain
from pipeline.evaluation.examples import Examples
from pipeline.evaluation.features import (
    Maps,
    depths,
    feature_maps,
    map_stages,
)
from pipeline.evaluation.metrics import Integers
from pipeline.evaluation.page import Page
from pipeline.evaluation.subject import Subject
from pipeline.figures import depth as figures
from pipeline.figures import evidence
from pipeline.figures.style import shorten
from pipeline.models.rnn import SpeechClassifier, standardise

CHANNELS, PATCHES = 5, 6
LONGEST = 24
"""Tokens of a sentence whose attention is drawn, at most: more can't be read."""


def pictures(
    page: Page, subject: Subject, test: Examples, guesses: Integers, most: int, name: str
) -> None:
    """Draw what fits the task; `guesses` are the model's answers, `most` how many images to use."""
    if subject.task == "image":
        images(page, subject, test, guesses, most, name)
    elif subject.task == "text":
        texts(page, subject, test, guesses, name)
    else:
        sounds(page, subject, test, guesses, name)


def images(
    page: Page, subject: Subject, test: Examples, guesses: Integers, most: int, name: str
) -> None:
    """First filters, feature maps of one image, and the patches that excite maps most."""
    model = subject.model
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return
    weights = first.weight.detach().float().cpu().numpy()
    height, width = weights.shape[2:]
    page.figure(
        "filters",
        figures.filters(weights, f"{name}: filters of the first layer"),
        title="The first layer's filters",
        text=f"Each square is one of the {len(weights)} filters of {height}×{width} pixels that "
        "the image is scanned with; red adds, blue takes away. Pairs of a red and a blue side find "
        "edges in one direction, a centre and its surround find spots.",
        alt=f"{min(len(weights), 32)} filters of {height} by {width} pixels as small coloured "
        "squares.",
    )
    rows = np.flatnonzero(guesses == test.labels)
    chosen = int(rows[0]) if len(rows) else 0
    example = subject.encode(test.raw[chosen : chosen + 1])
    stages = map_stages(model, example)
    maps = feature_maps(model, example, stages)
    page.figure(
        "maps",
        figures.maps(
            test.raw[chosen],
            {stage.name: part[0] for stage, part in zip(stages, maps, strict=True)},
            f"{name}: one image through the network",
        ),
        title="One image on its way through the network",
        text=f"The eight strongest maps at each stage for test row {chosen}, a "
        f"{subject.classes[test.labels[chosen]]}; names are maps × height × width. Early maps "
        "still trace the strokes, late ones are coarse and say that a part is there.",
        alt=f"Feature maps of one image at {len(stages)} stages, from "
        f"{stages[0].name} to {stages[-1].name}.",
    )
    sheets = _patches(subject, test.raw[:most], stages)
    page.figure(
        "patches",
        figures.patch_sheet(sheets, f"{name}: what excites a map most"),
        title="What each depth looks for",
        text="Every row is one map, and shows the pieces of test images that excite it most, as "
        "large as what one of its units can see. From early to late the pieces grow from an edge "
        "over a stroke to most of an object, and what a row has in common becomes the class.",
        alt="Patches of test images by depth: "
        + ", ".join(f"{part.depth} with {len(part.channels)} maps" for part in sheets),
    )


def _patches(
    subject: Subject, raw: NDArray[np.uint8], stages: Sequence[Maps]
) -> list[figures.Patches]:
    by_name = {stage.name: stage for stage in stages}
    chosen = {depth: by_name[stage] for depth, stage in depths(list(by_name)).items()}
    peaks: dict[str, list[NDArray[np.float32]]] = {depth: [] for depth in chosen}
    places: dict[str, list[NDArray[np.int64]]] = {depth: [] for depth in chosen}
    for part in subject.chunks(raw):
        maps = feature_maps(subject.model, subject.encode(part), list(chosen.values()))
        for depth, found in zip(chosen, maps, strict=True):
            flat = found.reshape(*found.shape[:2], -1)
            peaks[depth].append(flat.max(axis=2))
            places[depth].append(flat.argmax(axis=2))
    sheets = []
    for depth, stage in chosen.items():
        strength, where = np.concatenate(peaks[depth]), np.concatenate(places[depth])
        field = explain.receptive_field(
            subject.model, stage.module, subject.encode(raw[:1])["images"]
        )
        varied = np.argsort(-strength.std(axis=0), kind="stable")[:CHANNELS]
        rows = []
        for channel in varied:
            best = np.argsort(-strength[:, channel], kind="stable")[:PATCHES]
            rows.append([_cut(raw[i], where[i, channel], stage, field) for i in best])
        sheets.append(figures.Patches(depth, [int(channel) for channel in varied], rows))
    return sheets


def _cut(
    image: NDArray[np.uint8], place: int, stage: Maps, field: tuple[int, int]
) -> NDArray[np.uint8]:
    """The part of an image that the unit at `place` of a map sees, black beyond its borders."""
    starts = []
    for axis, index in enumerate(divmod(int(place), stage.shape[2])):
        scale = image.shape[axis + 1] / stage.shape[axis + 1]
        starts.append(round((index + 0.5) * scale - field[axis] / 2))
    padded = np.pad(image, ((0, 0), (field[0], field[0]), (field[1], field[1])))
    top, left = starts[0] + field[0], starts[1] + field[1]
    return padded[:, top : top + field[0], left : left + field[1]]


def texts(page: Page, subject: Subject, test: Examples, guesses: Integers, name: str) -> None:
    """Which words speak for the answer, and which word attends to which."""
    chances = [len(text.split()) for text in test.raw]
    readable = [i for i, count in enumerate(chances) if 6 <= count <= 18]
    hits = [i for i in readable if guesses[i] == test.labels[i]]
    misses = [i for i in readable if guesses[i] != test.labels[i]]
    chosen = [
        next((i for i in hits if test.labels[i] == label), None)
        for label in range(min(len(subject.classes), 3))
    ]
    rows = [i for i in chosen if i is not None] + misses[:2]
    rows = rows or [0]
    sentences = []
    for row in rows:
        inputs = subject.encode([test.raw[row]])
        found = explain.token_attribution(subject.model, subject.tokenizer, inputs)
        special = set(subject.tokenizer.all_special_tokens)
        kept = [i for i, token in enumerate(found.tokens) if token not in special][:60]
        words, scores = evidence.join_pieces(
            [found.tokens[i] for i in kept], [found.scores[i] for i in kept]
        )
        verdict = "right" if guesses[row] == test.labels[row] else "wrong"
        about = (
            f"test row {row}: {subject.classes[test.labels[row]]}; "
            f"read as {subject.classes[found.target]} ({verdict})"
        )
        sentences.append(evidence.Words(words, scores, about))
    page.figure(
        "words",
        evidence.word_attribution(sentences, f"{name}: which words speak for the answer"),
        title="Which words the answer comes from",
        text="Red words speak for the answer that was given, blue ones against it; the numbers are "
        "what they add to its logit (integrated gradients against padding). The last sentences "
        "are mistakes: look for the word that led astray.",
        alt="; ".join(f"{one.about}: strongest word {_strongest(one)}" for one in sentences),
    )
    short = next((i for i in rows if len(test.raw[i].split()) <= LONGEST // 2), rows[0])
    inputs = {key: part[:, :LONGEST] for key, part in subject.encode([test.raw[short]]).items()}
    maps = explain.attention_maps(subject.model, inputs)
    tokens = subject.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    layers = depths([f"layer {number}" for number in range(1, len(maps) + 1)])
    page.figure(
        "attention",
        figures.attention(
            {
                f"{depth}: {layer}": maps[int(layer.split()[1]) - 1].mean(axis=0)
                for depth, layer in layers.items()
            },
            tokens,
            f"{name}: which word looks at which",
        ),
        title="Attention by depth",
        text=f"Test row {short}; a bright square means that the word of its row looks at the word "
        "of its column, averaged over the heads. Early layers look at neighbours and at the word "
        "itself, late ones gather at few words or at the separators, where nothing is left to ask.",
        alt=f"Attention between {len(tokens)} tokens in {len(layers)} layers of one sentence.",
    )


def sounds(page: Page, subject: Subject, test: Examples, guesses: Integers, name: str) -> None:
    """The spectrogram, and the evidence for each class gathered over time."""
    model = subject.model
    if not isinstance(model, SpeechClassifier):
        return
    hits = np.flatnonzero(guesses == test.labels)
    misses = np.flatnonzero(guesses != test.labels)
    labels = dict.fromkeys(test.labels[hits].tolist())
    rows = [int(next(i for i in hits if test.labels[i] == label)) for label in list(labels)[:2]]
    rows = (rows + [int(i) for i in misses[:2]])[:3] or [0]
    clips = []
    for row in rows:
        inputs = subject.encode([test.raw[row]])
        picture = spectrograms(subject, [test.raw[row]])[0]
        gathered = explain.evidence_over_time(model, inputs, model.layers[-1])
        seconds = len(test.raw[row]) / (subject.sample_rate or 1)
        true, guess = subject.classes[test.labels[row]], subject.classes[guesses[row]]
        about = f"row {row}: {shorten(true, 10)}, read as {shorten(guess, 10)}"
        clips.append(evidence.Clip(picture, gathered, seconds, about))
    page.figure(
        "evidence",
        evidence.evidence(clips, subject.classes, f"{name}: evidence for each class over time"),
        title="When it makes up its mind",
        text="Above, the log-mel spectrogram as the network gets it; below, what the hidden states "
        "have added to each class's logit up to that moment, the three likeliest classes in "
        "colour. Where a line rises steeply the sound above it told the classes apart.",
        alt="; ".join(clip.about for clip in clips),
    )


def spectrograms(subject: Subject, waves: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The standardised log-mel spectrum that the network gets, float32 [bands, frames] each.

    Raises:
        ValueError: the model has no such features.
    """
    if not isinstance(subject.model, SpeechClassifier):
        raise ValueError(f"{type(subject.model).__name__} has no log-mel features")
    pictures = []
    for wave in waves:
        with torch.no_grad():
            features, frames = subject.model.features(**subject.encode([wave]))
        pictures.append(standardise(features, frames)[0].cpu().numpy().T)
    return pictures


def _strongest(sentence: evidence.Words) -> str:
    scores = np.abs(np.asarray(sentence.scores))
    return sentence.words[int(scores.argmax())] if len(scores) else "none"
