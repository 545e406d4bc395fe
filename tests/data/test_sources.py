from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.sources import package_file
from pipeline.task import find, tasks
from tests.data.sources import source


def prepare(data, **changes):
    return find(data=data).prepare.prepare(source(data, **changes), 0, 9)


KINDS = {
    f"{data}.{key}": (name, lambda data=data, changes=changes: prepare(data, **changes))
    for data, key, name, changes in (
        ("text", "file", "rows.csv", {"kind": "csv", "file": "raw/rows.csv"}),
        (
            "image", "folder", "train-labels-idx1-ubyte",
            {"kind": "mnist", "folder": "raw", "test": None},
        ),
    )
    if data in {task.about.data for task in tasks()}
}  # fmt: skip


def test_a_missing_package_or_package_file_is_one_clear_line():
    with pytest.raises(PipelineError, match="the package no_such_package is not installed"):
        package_file("no_such_package", "x.csv")
    with pytest.raises(PipelineError, match=r"nothing\.csv is missing from the package mlxtend"):
        package_file("mlxtend", "nothing.csv")


class TestLinksOfOneFile:
    @pytest.fixture(autouse=True)
    def raw(self, linked):
        Path("raw").mkdir()
        rows = "".join(f"number {n},{n % 2}\n" for n in range(30))
        Path("raw/rows.csv").write_text(f"text,label\n{rows}")
        for part, count in (("train", 40), ("t10k", 20)):
            pixels = np.random.default_rng(count).integers(0, 256, (count, 2, 2), dtype=np.uint8)
            labels = (np.arange(count) % 2).astype(np.uint8)
            for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
                shape = np.array(values.shape, ">u4").tobytes()
                content = bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()
                Path(f"raw/{part}-{name}-ubyte").write_bytes(content)

    @pytest.mark.parametrize("key", KINDS)
    def test_never_leave_their_folder(self, key, tmp_path):
        name, prepare = KINDS[key]
        path = Path("raw") / name
        path.rename(tmp_path / "secret")
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(PipelineError, match=f"{key}: {path} leads out of raw; put the file"):
            prepare()

    @pytest.mark.parametrize("key", KINDS)
    def test_never_lead_to_themselves(self, key):
        name, prepare = KINDS[key]
        path = Path("raw") / name
        path.unlink()
        path.symlink_to(name)
        with pytest.raises(PipelineError, match=f"{path} can't be read"):
            prepare()

    @pytest.mark.parametrize("key", KINDS)
    def test_may_stay_in_their_folder(self, key):
        name, prepare = KINDS[key]
        path = Path("raw") / name
        path.rename("raw/version2")
        path.symlink_to("version2")
        assert set(prepare().splits) == {"train", "validation", "test"}

    @pytest.mark.parametrize("key", KINDS)
    def test_may_lead_into_the_cache_of_dvc(self, key, linked):
        name, prepare = KINDS[key]
        linked("raw")
        assert (Path("raw") / name).is_symlink()
        prepare()
