"""Run by test_repeats.py in a process of its own: prepare small data sets into a folder."""

import os
import sys
from pathlib import Path

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.tasks.image_classification.prepare import prepare as prepare_image
from pipeline.tasks.speech_classification.prepare import prepare as prepare_audio
from pipeline.tasks.text_classification.prepare import prepare as prepare_text
from tests.data.sources import audio_source, contents, image_source, text_source


def everything(folder: Path) -> None:
    prepared.write(folder / "image", *prepare_image(image_source(), 0, 300))
    prepared.write(folder / "text", *prepare_text(text_source(), 0, 300))
    prepared.write(folder / "audio", *prepare_audio(audio_source(clips=600), 0, 300))


def for_ever(folder: Path) -> None:
    """For each line of input, print the id of a new process that writes again and again."""
    made = prepare_image(image_source(), 0, None)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            while True:
                prepared.write(folder, *made)
        print(child, flush=True)
        os.waitpid(child, 0)


def until_full(folder: Path) -> None:
    """Write one data set, then another that the disk has no room for beside it."""
    prepared.write(folder / "image", *prepare_image(image_source(), 0, None))
    before = contents(folder)
    try:
        prepared.write(folder / "image", *prepare_image(image_source(), 1, None))
    except PipelineError as error:
        print(error)
    print(contents(folder) == before, os.listdir(folder))


if __name__ == "__main__":
    {"everything": everything, "for_ever": for_ever, "until_full": until_full}[sys.argv[1]](
        Path(sys.argv[2])
    )
