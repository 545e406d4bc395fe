"""Turn a source into a prepared data set: Parquet splits and a data card.

python -m stages.prepare modality=text
python -m stages.prepare modality=text text=imdb
"""

from pathlib import Path

from pipeline.figures.page import Page
from pipeline.figures.style import look
from pipeline.files import new_directory
from pipeline.prepared import read_card, write
from pipeline.settings import Prepare
from pipeline.stage import Context, run, stage
from pipeline.task import find, with_sources


@stage("prepare", lambda: with_sources(Prepare), computes=False)
def main(settings: Prepare, context: Context) -> None:
    """The body."""
    output, task = Path(settings.output), find(data=settings.modality)
    source, rows = getattr(settings, settings.modality), settings.profile.max_examples
    prepared = task.prepare.prepare(source, settings.seed, rows)
    write(output, task.name, prepared, settings.seed)
    with new_directory(Path(settings.plots), "findings.json") as folder, look():
        page = Page(folder)
        counts = task.data_report.data_report(output, read_card(output), page)
        page.close("data")
    context.run.output(output)
    context.run.output(Path(settings.plots))
    context.run.artifact(Path(settings.plots))
    context.run.metrics(counts)
    for name, split in prepared.splits.items():
        print(f"{output}/{name}.parquet: {len(split):,} rows")


if __name__ == "__main__":
    run(main)
