"""The report: one page from the files that the other stages wrote, as HTML and as Markdown.

Nothing is computed from data or models here, and nothing that differs between equal runs goes in:
equal files give equal bytes.
"""

import base64
import os
import struct
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import digest, new_file, read_json
from pipeline.report.numbers import Measure, headline, read_metrics, seeds
from pipeline.settings import Report
from pipeline.task import find


def build(settings: Report) -> list[dict[str, Any]]:
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
    models = [_model(name, settings) for name in settings.data]
    sets = [_data(Path(folder), settings) for folder in settings.data.values()]
    notes = {name: text for model in models for name, text in model["notes"].items()}
    for path, template in (
        (settings.html, "report.html.j2"),
        (settings.markdown, "report.md.j2"),
    ):
        with new_file(Path(path)) as temporary:
            text = environment.get_template(template).render(models=models, sets=sets, notes=notes)
            temporary.write_text(text, "utf-8")
    return models


def _model(name: str, settings: Report) -> dict[str, Any]:
    about, made_by = find(model=name).about, f"evaluate@{name}"
    metrics, data = Path(settings.metrics), Path(settings.data[name])
    plots, weights = Path(settings.plots) / name, Path(settings.models) / name
    numbers = read_metrics(metrics / f"{name}.json", made_by)
    card = read_json(data / "dataset.json", f"prepare@{data.name}")
    description = read_json(weights / "model.json", f"--downstream {about.stage}")
    summary = read_json(plots / "summary.json", made_by)
    try:
        measure = Measure(about.headline, about.words, about.unit)
        value = numbers[about.headline]
        repeated = seeds(metrics, name, measure.name, numbers, settings.seeds)
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
            "figures": _figures(plots, settings, made_by),
            "settings": _flat(description["settings"]),
            "weights": description["sha256"],
            "registered": about.registered,
            "query": f"tags.`weights.md5` = '{_md5(weights)}'",
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


def _figures(folder: Path, settings: Report, stage: str) -> list[dict[str, Any]]:
    figures, beside = [], Path(settings.markdown).parent
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


def _data(folder: Path, settings: Report) -> dict[str, Any]:
    stage = f"prepare@{folder.name}"
    card = read_json(folder / "dataset.json", stage)
    figures: list[dict[str, Any]] = []
    findings: list[list[str]] = []
    plots = Path(settings.data_plots or "") / folder.name
    if settings.data_plots and (plots / "figures.json").exists():
        figures = _figures(plots, settings, stage)
        findings = read_json(plots / "findings.json", stage)
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
