"""Turn a source into a prepared data set: Parquet splits and a data card.

python -m stages.prepare modality=text
python -m stages.prepare modality=text text=imdb
"""

from pathlib import Path

from pipeline.prepared import write
from pipeline.classification.data_report import data_report
from pipeline.figures.style import look
from pipeline.files import new_directory
from pipeline.settings import Prepare
from pipeline.tasks.speech_classification import prepare as audio_source
from pipeline.tasks.image_classification import prepare as image_source
from pipeline.tasks.text_classification import prepare as text_source
from pipeline.stage import Context, run, stage


@stage("prepare", Prepare, computes=False)
def main(settings: Prepare, context: Context) -> None:
    """The body."""
    output, rows = Path(settings.output), settings.profile.max_examples
    if settings.modality == "image":
        card, splits = image.prepare(settings.image, settings.seed, rows)
    elif settings.modality == "text":
        card, splits = text.prepare(settings.text, settings.seed, rows)
    else:
        card, splits = audio.prepare(settings.audio, settings.seed, rows)
    write(output, card, splits)
    with new_directory(Path(settings.plots), "findings.json") as folder, look():
        counts = data_report(output, folder)
    context.run.output(output)
    context.run.output(Path(settings.plots))
    context.run.artifact(Path(settings.plots))
    context.run.metrics(counts)
    for name, split in splits.items():
        print(f"{output}/{name}.parquet: {len(split):,} rows")


if __name__ == "__main__":
    run(main)
