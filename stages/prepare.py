"""Turn a source into a prepared data set: Parquet splits and a data card.

python -m stages.prepare modality=text
python -m stages.prepare modality=text text=imdb
"""

from collections import Counter
from pathlib import Path

from pipeline.figures.page import Page
from pipeline.figures.style import look
from pipeline.files import new_directory
from pipeline.prepared import read_card, write
from pipeline.settings import Prepare
from pipeline.stage import Context, run, stage
from pipeline.task import find, with_sources

LEFT_OUT = "left_out.csv"
SAID = {
    "repeats": "rows left out, for an earlier one is the same",
    "conflicts": "rows left out, for the same one has another label",
    "frames": "files of which all frames but the first are left out",
}


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
        if left_out := prepared.left_out():
            page.table(LEFT_OUT.removesuffix(".csv"), left_out, list(left_out[0]))
        page.close("data")
    context.run.output(output)
    context.run.output(Path(settings.plots))
    context.run.artifact(Path(settings.plots))
    context.run.metrics(counts)
    for name, split in prepared.splits.items():
        print(f"{output}/{name}.parquet: {len(split):,} rows")
    for reason, count in Counter(row["reason"] for row in left_out).items():
        said = SAID.get(reason, f"rows left out ({reason})")
        print(f"{output}: {said}: {count:,}; {settings.plots}/{LEFT_OUT} lists them")
    if across := int(counts.get("near_duplicates/across", 0)):
        listed = f"{settings.plots}/near_duplicates.csv"
        print(f"{output}: nearly equal pairs of rows in two splits: {across:,}; see {listed}")


if __name__ == "__main__":
    run(main)
