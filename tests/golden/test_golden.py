"""What is computed today is what was computed when the golden files were written."""

import runpy
import sys

import pytest

from pipeline import machine
from tests import golden
from tests.workspace import workspace


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return workspace(tmp_path_factory.getbasetemp()) / "data"


@pytest.mark.parametrize("precision", golden.TOLERANCE)
@pytest.mark.parametrize("model", golden.MODELS)
def test_every_loss_is_the_golden_one(model, precision, data):
    expected = golden.recorded(model)[precision]
    ran = golden.train(model, precision, data)
    assert len(ran["losses"]) == golden.STEPS
    if ran["numerics"] == expected["numerics"]:
        assert ran["losses"] == expected["losses"]
    else:
        tolerance = golden.TOLERANCE[precision]
        assert ran["losses"] == pytest.approx(expected["losses"], rel=tolerance)


@pytest.mark.parametrize("precision", golden.TOLERANCE)
@pytest.mark.parametrize("model", golden.MODELS)
def test_where_they_are_to_be_equal_to_the_bit_is_told_as_a_run_tells_it(model, precision):
    recorded = golden.recorded(model)[precision]
    assert set(recorded["card"]["libraries"]) == set(machine.LIBRARIES)
    card = recorded["card"]
    assert machine.digest_of_numerics(card) == recorded["numerics"]


def test_the_files_are_written_on_demand_only(monkeypatch):
    before = {path: path.read_bytes() for path in golden.FOLDER.glob("*.json")}
    assert {path.stem for path in before} >= set(golden.MODELS)
    monkeypatch.setattr(sys, "argv", ["golden"])
    with pytest.raises(SystemExit, match=r"python -m tests\.golden --write"):
        runpy.run_module("tests.golden", run_name="__main__")
    assert {path: path.read_bytes() for path in golden.FOLDER.glob("*.json")} == before
