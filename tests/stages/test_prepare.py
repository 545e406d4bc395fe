"""What `prepare` says of a source: nothing of it is left out in silence."""

import csv

import numpy as np
import pytest
from PIL import Image

from stages import prepare
from tests.data.sources import image_folder


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Prepares the images in `tmp_path/raw`; returns what was printed."""

    def start() -> str:
        places = [f"{name}={tmp_path / name}" for name in ("output", "plots")]
        source = ["image=folder", f"image.folder={tmp_path / 'raw'}"]
        argv = ["prepare", "modality=image", "tracking=off", *source, *places]
        monkeypatch.setattr("sys.argv", argv)
        monkeypatch.chdir(tmp_path)  # main leaves for the root of the repository
        prepare.main()
        return capsys.readouterr().out

    return start


def test_what_is_left_out_and_what_is_nearly_the_same_is_told_with_the_file_that_lists_it(
    start, tmp_path
):
    raw = image_folder(tmp_path / "raw", per_class=20)
    (raw / "cat" / "again.png").write_bytes((raw / "cat" / "3.png").read_bytes())
    Image.open(raw / "cat" / "2.png").save(raw / "dog" / "lie.bmp")
    for number in range(4, 20):  # the same pictures as somebody else's program wrote them
        again = raw / "dog" / f"{number}.jpg"
        Image.open(raw / "dog" / f"{number}.png").save(again, quality=98, subsampling=0)
    random = np.random.default_rng(1)
    for suffix in ("gif", "png", "tiff", "webp"):
        frames = random.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
        first, *others = map(Image.fromarray, frames)
        first.save(raw / "cat" / f"moving.{suffix}", save_all=True, append_images=others)
    said = start()
    plots = tmp_path / "plots"
    listed = f"; {plots}/left_out.csv lists them"
    lines = said.splitlines()
    assert lines[3:6] == [
        f"{tmp_path}/output: rows left out, for an earlier one is the same: 1{listed}",
        f"{tmp_path}/output: rows left out, for the same one has another label: 2{listed}",
        f"{tmp_path}/output: files of which all frames but the first are left out: 4{listed}",
    ]
    with (plots / "left_out.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("repeats", "cat/again.png", "cat/3.png"),
        ("conflicts", "cat/2.png", ""),
        ("conflicts", "dog/lie.bmp", "cat/2.png"),
        *[("frames", f"cat/moving.{suffix}", "") for suffix in ("gif", "png", "tiff", "webp")],
    ]
    with (plots / "near_duplicates.csv").open(newline="") as file:
        found = [
            (row["first"].split()[0], row["second"].split()[0]) for row in csv.DictReader(file)
        ]
    across = sum(first != second for first, second in found)
    assert across > 3
    assert lines[6:] == [
        f"{tmp_path}/output: nearly equal pairs of rows in two splits: {across}; "
        f"see {plots}/near_duplicates.csv"
    ]


def test_a_source_without_any_of_this_has_nothing_to_tell(start, tmp_path):
    image_folder(tmp_path / "raw", per_class=20)
    said = start()
    assert [line.rpartition(": ")[2] for line in said.splitlines()] == [
        "28 rows",
        "4 rows",
        "8 rows",
    ]
    assert not (tmp_path / "plots/left_out.csv").exists()
