"""The report: one page from the files that the other stages wrote, as HTML and as Markdown.

Nothing is computed from data or models here, and nothing that differs between equal runs goes in:
equal files give equal bytes.
"""

import base64
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import digest, new_file, read_json
from pipeline.report.numbers import Measure, headline, read_metrics, seeds
from pipeline.task import find


@dataclass(frozen=True)
class Sources:
    """Where the report finds what it shows.

    Attributes:
        metrics: folder of `<model>.json`, and of `seeds/<model>-<seed>.json` for other seeds.
        plots: folder of `<model>/figures.json` with its figures and tables.
        models: folder of `<model>/model.json`.
        data: name of each model and the folder of its data set.
        data_plots: folder of each data set's `<folder name>/figures.json`, if there is one.
        seeds: further seeds that each model was trained with.
    """

    metrics: Path
    plots: Path
    models: Path
    data: dict[str, Path]
    data_plots: Path | None = None
    seeds: Sequence[int] = ()


def build(sources: Sources, html: Path, markdown: Path) -> list[dict[str, Any]]:
    """Write the report; images are inside the HTML, and links from the Markdown.

    Returns:
        What it shows of each model; `name`, `numbers` and `seeds` are among it.

    Raises:
        PipelineError: a file of another stage is missing or malformed.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        # Markdown has a filter of its own, `cell`.
        autoescape=select_autoescape(["html.j2"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    beside = markdown.parent
    models = [_model(name, folder, sources, beside) for name, folder in sources.data.items()]
    sets = [_data(folder, sources.data_plots, beside) for folder in sources.data.values()]
    notes = {name: text for model in models for name, text in model["notes"].items()}
    for path, template in ((html, "report.html.j2"), (markdown, "report.md.j2")):
        with new_file(path) as temporary:
            text = environment.get_template(template).render(models=models, sets=sets, notes=notes)
            temporary.write_text(text, "utf-8")
    return models


def _model(name: str, folder: Path, sources: Sources, beside: Path) -> dict[str, Any]:
    """What the templates show of a model; links to images are relative to the folder `beside`."""
    about, made_by = find(model=name).about, f"evaluate@{name}"
    numbers = read_metrics(sources.metrics / f"{name}.json", made_by)
    card = read_json(folder / "dataset.json", f"prepare@{folder.name}")
    description = read_json(sources.models / name / "model.json", f"--downstream {about.stage}")
    summary = read_json(sources.plots / name / "summary.json", made_by)
    try:
        measure = Measure(about.headline, about.unit)
        value = numbers[about.headline]
        repeated = seeds(sources.metrics, name, measure.name, value, sources.seeds)
        rule = gain = ""
        if rival := headline(numbers, about):
            rule = f"{rival.baseline}: {measure.value(rival.value)}"
            gain = f"{measure.difference(rival.gain)}{measure.points}"
        return {
            "name": name,
            "title": f"{about.title} on {card['name']}",
            "measure": measure,
            "numbers": numbers,
            "headline": rival,
            "row": {
                "Test": f"{measure.value(value)} {measure.words}",
                "95% interval": measure.interval(numbers),
                "Best simple rule": rule,
                "Gain": gain,
                "Besides": "; ".join(f"{name} {text}" for name, text in summary["columns"]),
            },
            "notes": summary["notes"],
            "facts": summary["facts"],
            "tables": [{**table, "numbers": _of_numbers(table)} for table in summary["tables"]],
            "seeds": repeated,
            "figures": _figures(sources.plots / name, beside, made_by),
            "settings": _flat(description["settings"]),
            "weights": description["sha256"],
            "registered": about.registered,
            "query": f"tags.`weights.md5` = '{_md5(sources.models / name)}'",
        }
    except (KeyError, TypeError) as error:
        raise PipelineError(
            f"metrics or cards of {name} lack {error}; run `dvc repro -f evaluate@{name}`"
        ) from error


def _of_numbers(table: dict[str, Any]) -> list[bool]:
    """Which columns of a table hold numbers: each text in them begins with one."""
    return [
        all(row[place].lstrip("+−±")[:1].isdigit() for row in table["rows"])
        for place in range(len(table["columns"]))
    ]


def _figures(folder: Path, beside: Path, stage: str) -> list[dict[str, Any]]:
    figures = []
    for entry in read_json(folder / "figures.json", stage):
        path = folder / entry["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise PipelineError(
                f"{path} can't be read ({error.strerror}); run `dvc repro -f {stage}`"
            ) from error
        width, height = struct.unpack(">II", content[16:24])
        figures.append(
            {
                **entry,
                "link": Path(os.path.relpath(path, beside)).as_posix(),
                "data": "data:image/png;base64," + base64.b64encode(content).decode("ascii"),
                # Drawn at 160 dots to the inch, where the browser has 96.
                "width": round(width * 0.6),
                "height": round(height * 0.6),
            }
        )
    return figures


def _data(folder: Path, plots: Path | None, beside: Path) -> dict[str, Any]:
    stage = f"prepare@{folder.name}"
    card = read_json(folder / "dataset.json", stage)
    figures: list[dict[str, Any]] = []
    findings: list[list[str]] = []
    if plots is not None and (plots / folder.name / "figures.json").exists():
        figures = _figures(plots / folder.name, beside, stage)
        findings = read_json(plots / folder.name / "findings.json", stage)
    return {
        "folder": folder.name,
        "card": card,
        "facts": _flat(card["facts"]),
        "figures": figures,
        "findings": findings,
    }


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, part in sorted(value.items()):
        if isinstance(part, dict):
            found |= _flat(part, f"{prefix}{key}.")
        elif part is not None:
            parts = part if isinstance(part, list) else [part]
            shown = (str(float(f"{one:.6g}") if isinstance(one, float) else one) for one in parts)
            found[prefix + key] = ", ".join(shown)
    return found


def _md5(folder: Path) -> str:
    weights = folder / "model.safetensors"
    try:
        return digest(weights)
    except OSError as error:
        raise PipelineError(
            f"{weights} can't be read ({error.strerror}); run `dvc repro` to make it"
        ) from error


def _cell(text: Any) -> str:
    """A value inside a Markdown table or sentence: no character of it means anything."""
    shown = " ".join(str(text).split())
    for sign in "\\`*_{}[]<>#|":
        shown = shown.replace(sign, "\\" + sign)
    return shown
