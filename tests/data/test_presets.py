import pytest
import yaml

from pipeline import settings
from tests.data.sources import ROOT

SOURCES = {
    "image": settings.ImageSource,
    "text": settings.TextSource,
    "audio": settings.AudioSource,
}
PRESETS = sorted(path for modality in SOURCES for path in (ROOT / "conf" / modality).glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_preset_fits_the_settings_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    SOURCES[path.parent.name].model_validate(yaml.safe_load(text))


def test_there_is_a_preset_for_every_kind_of_source():
    kinds = {
        (path.parent.name, yaml.safe_load(path.read_text(encoding="utf-8"))["kind"])
        for path in PRESETS
    }
    assert kinds == {
        (modality, kind)
        for modality, source in SOURCES.items()
        for kind in source.model_fields["kind"].annotation.__args__
    }
