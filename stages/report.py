"""Put everything that was measured on one page, from the files of the other stages.

python -m stages.report
"""

import tempfile
from pathlib import Path

from pipeline.report import build
from pipeline.report.numbers import changes_table, committed
from pipeline.settings import Report
from pipeline.stage import Context, run, stage


@stage("report", lambda: Report, computes=False)
def main(settings: Report, context: Context) -> None:
    """The body."""
    models = build(settings)
    for name, data in settings.data.items():
        context.run.input(Path(data), name=f"{name}.data")
        context.run.input(Path(settings.models) / name, name=f"{name}.model")
        context.run.input(Path(settings.plots) / name, name=f"{name}.evaluation")
    html = Path(settings.html)
    for target in ("self", "parent"):
        context.run.artifact(html, target=target)
    context.run.output(html)

    # What changed depends on the last commit, so it is shown and logged, and is no output.
    now = {model["name"]: model["numbers"] for model in models}
    # Two trainings say too little to call a change noise.
    limits = {
        model["name"]: model["seeds"].noise
        for model in models
        if model["seeds"] and len(model["seeds"].values) > 2
    }
    table = changes_table(committed(Path(settings.metrics), list(now)), now, limits)
    print(table, end="")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changes.md"
        path.write_text(table, encoding="utf-8")
        context.run.artifact(path, target="parent")
    print(f"report: {settings.html} and {settings.markdown}")


if __name__ == "__main__":
    run(main)
