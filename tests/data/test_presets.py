import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.task import tasks
from tests.data.sources import ROOT

SOURCES = {task.about.data: task.settings.Source for task in tasks()}
MODELS = {task.about.model: task.settings.Model for task in tasks()}


def presets(groups):
    return sorted(path for group in groups for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "path", presets(SOURCES | MODELS), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_preset_fits_the_settings_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    schema = (SOURCES | MODELS)[path.parent.name]
    TypeAdapter(schema).validate_python(yaml.safe_load(text))


def test_there_is_a_preset_for_every_kind_of_source():
    kinds = {
        (path.parent.name, yaml.safe_load(path.read_text(encoding="utf-8")).get("kind"))
        for path in presets(SOURCES)
    }
    assert kinds == {
        (data, kind)
        for data, source in SOURCES.items()
        for kind in (
            source.model_fields["kind"].annotation.__args__
            if "kind" in source.model_fields
            else [None]
        )
    }
