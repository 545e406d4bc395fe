import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import png
from pipeline.prepared import SPLITS, read_card, read_split, write
from pipeline.tasks.object_detection.boxes.annotations import read
from pipeline.tasks.object_detection.prepare import prepare
from tests.data.sources import boxes_source, complaint
from tests.tasks.object_detection.drawn import (
    CLASSES,
    WRITERS,
    Drawn,
    coco,
    picture,
    scenes,
    source,
    voc,
    yolo,
)

FORMATS = sorted(WRITERS)


@st.composite
def drawn(draw, whole):
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))

    def sides(most):
        if whole:
            low = draw(st.integers(0, most - 1))
            return low, draw(st.integers(low + 1, most))
        low = draw(st.floats(0, most - 0.5))
        return low, draw(st.floats(low + 0.25, most))

    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        (x1, x2), (y1, y2) = sides(width), sides(height)
        boxes.append((draw(st.integers(0, 2)), (x1, y1, x2, y2), draw(st.booleans())))
    return Drawn(width, height, boxes)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_was_written_is_read(kind, data):
    whole = kind == "voc"
    given_scenes = data.draw(st.lists(drawn(whole), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        WRITERS[kind](folder, given_scenes)
        classes, found = read(source(kind, folder))
    known = {label for one in given_scenes for label, _, _ in one.boxes}
    assert classes == (sorted(CLASSES[label] for label in known) if whole else CLASSES)
    assert list(found) == ["train"]
    for number, (one, back) in enumerate(zip(given_scenes, found["train"], strict=True)):
        assert back.file == picture(one.width, one.height, number)
        assert [classes[label] for label in back.labels] == [CLASSES[b[0]] for b in one.boxes]
        assert back.ignore.tolist() == [b[2] and kind != "yolo" for b in one.boxes]
        corners = np.array([b[1] for b in one.boxes]).reshape(-1, 4)
        step = {"voc": 0, "coco": 1e-5, "yolo": 1e-6 * max(one.width, one.height)}[kind]
        assert back.corners == pytest.approx(corners, abs=step)
        assert (back.corners >= 0).all()
        assert (back.corners[:, 2:] <= [one.width, one.height]).all()
        assert (back.corners[:, :2] < back.corners[:, 2:]).all()


ONE = [Drawn(40, 30, [(0, (4.0, 5.0, 20.0, 25.0), False)])]


def edited(content, path, value):
    """Set what a path of keys leads to; a value of None removes it."""
    *way, last = path
    for step in way:
        content = content[step]
    if value is None:
        del content[last]
    else:
        content[last] = value


IMAGE = {"id": 0, "file_name": "0000.png", "width": 40, "height": 30}
BOX = ("annotations", 0, "bbox")
COCO_FAULTS = [
    (BOX, [4, 5, 0, 20], "annotations[0] has no area in its image of 40×30 pixels"),
    (BOX, [4, 5, -3, 20], "annotations[0] is reversed"),
    (BOX, [4, 5, 38, 20], "annotations[0] leaves its image of 40×30 pixels by 2"),
    (BOX, [40, 5, 1, 20], "annotations[0] has no area in its image"),
    (BOX, [4, 5, float("nan"), 20], "annotations[0] has a bbox that is not four finite numbers"),
    (BOX, [4, 5, 10**400, 20], "annotations[0] has a bbox that is not four finite numbers"),
    (BOX, [4, 5, True, 20], "annotations[0] has a bbox that is not four finite numbers"),
    (BOX, [4, 5, 20], "annotations[0] has a bbox that is not four finite numbers"),
    (BOX, None, "annotations[0] has no bbox that is list"),
    (("annotations", 0), 3, "annotations[0] has no image_id that is int"),
    (("annotations", 0, "image_id"), 9, "annotations[0] is of image 9, which is not in images"),
    (("annotations", 0, "category_id"), 9, "annotations[0] is of category 9, which is not in"),
    (("annotations", 0, "iscrowd"), 2, "annotations[0] has an iscrowd that is not 0 or 1"),
    (("images", 0, "id"), "0", "images[0] has no id that is int"),
    (("images", 0, "width"), 41, "images[0] says width and height are (41, 30); "),
    (("images", 0, "height"), "30", "images[0] says width and height are (40, '30'); "),
    (("images", 0, "file_name"), "gone.png", "images[0]: {folder}/images/gone.png is missing"),
    (("images", 0, "file_name"), "x" * 300, "can't be read (File name too long)"),
    (("images", 0, "file_name"), "../secret.png", "images[0]: file_name '../secret.png' is not"),
    (("images", 0, "file_name"), "/etc/hostname", "images[0]: file_name '/etc/hostname' is not"),
    (("images", 0, "file_name"), "a\0.png", r"images[0]: file_name 'a\x00.png' is not below"),
    (("images", 0, "file_name"), "out.png", "out.png leads out of {folder}"),
    (("images", 0, "file_name"), "text.png", "text.png: is not an image that can be read"),
    (("images", 0, "file_name"), "cut.jpg", "cut.jpg: is not an image that can be read"),
    (("images", 0, "file_name"), "pipe.png", "pipe.png is missing"),
    (("images",), [IMAGE, IMAGE], "images[1] has the id or file_name of another one"),
    (("images",), [IMAGE, {**IMAGE, "id": 1}], "images[1] has the id or file_name of another one"),
    (("images",), [IMAGE, {**IMAGE, "id": 1, "file_name": "./0000.png"}], "images[1] has the id"),
    (("categories", 0, "id"), 1, "categories[1] has the id or name of another one"),
    (("categories", 0, "name"), "cat", "categories[1] has the id or name of another one"),
    (("categories", 0, "name"), "a\nb", "categories[0] has a name that is empty or can't be"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder that has one image with one box in each format, and images that can't be read."""
    root = tmp_path / "raw"
    coco(root, ONE)
    voc(root, ONE)
    yolo(root, ONE)
    (tmp_path / "secret.png").write_bytes(picture(40, 30, 0))
    (root / "images/out.png").symlink_to(tmp_path / "secret.png")
    (root / "images/text.png").write_text("no image")
    (root / "images/cut.jpg").write_bytes(picture(40, 30, 0, "JPEG")[:-200])
    os.mkfifo(root / "images/pipe.png")
    return root


@pytest.mark.parametrize(("path", "value", "words"), COCO_FAULTS)
def test_a_fault_in_coco_is_named(folder, path, value, words):
    content = json.loads((folder / "all.json").read_text())
    assert complaint(lambda: read(source("coco", folder))) is None
    edited(content, path, value)
    (folder / "all.json").write_text(json.dumps(content))
    message = complaint(lambda: read(source("coco", folder)))
    assert message.startswith((f"{folder} has 1 fault: ", f"{folder} has 2 faults: "))
    assert message.endswith("; mend them all")
    assert words.format(folder=folder) in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON (Expecting property name"),
        ("[" * 200_000, "is not JSON (maximum recursion depth"),
        ("[]", "has no list 'images'; export it as COCO's object detection"),
        ('{"images": [], "annotations": {}}', "has no list 'annotations'"),
        ('{"images": [' + "9" * 5000 + "]}", "is not JSON (Exceeds the limit"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused(folder, text, words):
    (folder / "all.json").write_text(text)
    assert f"{folder}/all.json {words}" in complaint(lambda: read(source("coco", folder)))


VOC_FAULTS = [
    ("<xmin>5.0<", "<xmin>nan<", "object 1 has a coordinate that is not finite"),
    ("<xmin>5.0<", "<xmin>left<", "object 1 has no bndbox with the numbers xmin, ymin, xmax, ymax"),
    ("bndbox>", "box>", "object 1 has no bndbox with the numbers xmin, ymin, xmax, ymax"),
    ("<xmin>5.0<", "<xmin>21<", "object 1 is a box that is reversed"),
    ("<xmin>5.0<", "<xmin>20.5<", "object 1 is a box that is reversed"),
    ("<xmax>20.0<", "<xmax>43<", "object 1 leaves its image of 40×30 pixels by 3"),
    ("<name>cat<", "<name> <", "object 1 has no name that can be printed"),
    ("<difficult>0<", "<difficult>no<", "object 1 has a difficult that is not 0 or 1"),
    ("<width>40<", "<width>41<", "0000.xml says width and height are (41.0, 30.0); "),
    ("<width>40<", "<width><", "0000.xml says width and height are (); "),
    ("0000.png", "0001.png", "0000.xml: filename is '0001.png', not 0000.png"),
    ("</object>", "", "0000.xml is not XML that is read (mismatched tag"),
    ("<annotation>", "<!DOCTYPE a [<!ENTITY e 'e'>]><annotation>", "(has a DOCTYPE)"),
    ("<annotation>", "<?xml version='1.0' encoding='no'?><annotation>", "(unknown encoding"),
]


@pytest.mark.parametrize(("old", "new", "words"), VOC_FAULTS)
def test_a_fault_in_voc_is_named(folder, old, new, words):
    file = folder / "Annotations/0000.xml"
    assert complaint(lambda: read(source("voc", folder))) is None
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    message = complaint(lambda: read(source("voc", folder)))
    assert message.startswith(f"{folder} has 1 fault: ")
    assert words in message
    assert str(file) in message


def test_voc_without_its_image_or_its_xml_is_a_fault(folder):
    (folder / "Annotations/0000.xml").rename(folder / "Annotations/1.xml")
    message = complaint(lambda: read(source("voc", folder)))
    assert message == (
        f"{folder} has 2 faults: {folder}/JPEGImages/0000.png has no {folder}/Annotations/0000.xml,"
        f" which an image without boxes has too; {folder}/Annotations/1.xml is of '1', which is no "
        f"image in {folder}/JPEGImages; mend them all"
    )


def test_a_list_names_images_of_the_folder_once(folder):
    (folder / "train.txt").write_text("0000\n0000\n../../secret\n")
    message = complaint(lambda: read(source("voc", folder, "train")))
    assert f"{folder}/train.txt names '0000' twice" in message
    assert f"{folder}/train.txt is of '../../secret', which is no image in" in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_that_grow_without_end_are_refused_before_they_do(folder, encoding):
    entities = "".join(
        f"<!ENTITY a{n} '{f'&a{n - 1};' * 10 if n else 'ha' * 10}'>" for n in range(12)
    )
    text = f'<?xml version="1.0"?><!DOCTYPE a [{entities}]><annotation>&a11;</annotation>'
    (folder / "Annotations/0000.xml").write_bytes(text.encode(encoding))
    assert "(has a DOCTYPE)" in complaint(lambda: read(source("voc", folder)))


def test_an_xml_of_any_depth_is_read_or_refused(folder):
    text = "<annotation>" + "<a>" * 200_000 + "</a>" * 200_000 + "</annotation>"
    (folder / "Annotations/0000.xml").write_text(text)
    classes, found = read(source("voc", folder))
    assert not classes
    assert len(found["train"]) == 1


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=6,
)


def places(value, way=()):
    """The ways to all that is in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*way, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*way, key))


@pytest.mark.parametrize(
    "name", ["all.json", "data.yaml", "Annotations/0000.xml", "labels/all/0000.txt"]
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_stands_in_a_file_is_read_or_a_line(folder, name, data):
    kind = {"all.json": "coco", "Annotations/0000.xml": "voc"}.get(name, "yolo")
    before = (folder / name).read_bytes()
    if name.endswith((".json", ".yaml")):
        content = json.loads(before)
        way = data.draw(st.sampled_from(list(places(content))))
        edited(content, way, data.draw(ANYTHING))
        (folder / name).write_text(json.dumps(content))
    else:
        at, more = data.draw(st.integers(0, len(before))), data.draw(st.integers(0, 9))
        new = data.draw(st.binary(max_size=4) | st.sampled_from([b"", b"nan", b"-1", b"1e999"]))
        (folder / name).write_bytes(before[:at] + new + before[at + more :])
    try:
        said = complaint(lambda: read(source(kind, folder)))
    finally:
        (folder / name).write_bytes(before)
    assert said is None or str(folder) in said or said.startswith("boxes")


YOLO_FAULTS = [
    ("0 0.5 0.5 0.2", "line 2 has 4 numbers, not class, x, y, width, height"),
    ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "line 2 has 9 numbers, not class, x, y, width, height"),
    ("cat 0.5 0.5 0.2 0.2", "line 2 is not a class and four numbers: 'cat 0.5"),
    ("0.5 0.5 0.5 0.2 0.2", "line 2 is not a class and four numbers: '0.5 0.5"),
    ("3 0.5 0.5 0.2 0.2", "line 2 is of class 3; there are 3, from 0"),
    ("-1 0.5 0.5 0.2 0.2", "line 2 is of class -1; there are 3, from 0"),
    ("0 nan 0.5 0.2 0.2", "line 2 has a coordinate that is not finite"),
    ("0 0.5 0.5 inf 0.2", "line 2 has a coordinate that is not finite"),
    ("0 0.5 0.5 -0.2 0.2", "line 2 is reversed"),
    ("0 0.5 0.5 0 0.2", "line 2 has no area in its image of 40×30 pixels"),
    ("0 20 15 10 10", "line 2 leaves its image of 40×30 pixels by 960"),
]


@pytest.mark.parametrize(("line", "words"), YOLO_FAULTS)
def test_a_fault_in_yolo_is_named(folder, line, words):
    file = folder / "labels/all/0000.txt"
    assert complaint(lambda: read(source("yolo", folder))) is None
    file.write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n\n")
    message = complaint(lambda: read(source("yolo", folder)))
    assert message.startswith(f"{folder} has 1 fault: {file}, {words}")


def test_files_of_yolo_that_belong_to_nothing_are_faults(folder):
    (folder / "labels/all/1.txt").write_text("")
    (folder / "labels/all/0000.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "images/all/0000.jpg").write_bytes(picture(9, 9, 9, "JPEG"))
    (folder / "images/all/video.mp4").write_bytes(b"")
    message = complaint(lambda: read(source("yolo", folder)))
    images, labels = folder / "images/all", folder / "labels/all"
    assert f"{folder} has 4 faults: " in message
    assert f"{images}/0000.png and {images}/0000.jpg have the same annotations" in message
    assert f"{images}/video.mp4 is not a file of type .bmp, " in message
    assert f"{labels}/1.txt is of no image in {images}" in message
    assert f"{labels}/0000.txt can't be read (it is not UTF-8)" in message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("data.yaml", "names: {0: cat, 1: dog, 2: owl}", None),
        ("classes.txt", "cat\ndog\n\nowl\n", None),
        ("data.yaml", "names: {1: cat, 2: dog}", "has no list of class names"),
        ("data.yaml", "names: [yes, no]", "has no list of class names"),
        ("data.yaml", "nc: 3", "has no list of class names"),
        ("data.yaml", "[" * 5000, "is not YAML"),
        ("data.yaml", "a: &a [*a]\nnames: !!python/name:os.system", "is not YAML"),
        ("classes.txt", "", "has no list of class names"),
        ("classes.txt", "cat\ncat\n", "has a class name twice"),
    ],
)
def test_yolos_classes_come_from_a_list_or_a_yaml_file(folder, name, text, words):
    (folder / name).write_text(text)
    asked = source("yolo", folder).model_copy(update={"classes": name})
    if words is None:
        assert read(asked)[0] == CLASSES
    else:
        assert f"{folder}/{name} {words}" in complaint(lambda: read(asked))


@pytest.mark.parametrize(
    ("kind", "name"), [("coco", "all.json"), ("yolo", "labels/all/0000.txt"), ("voc", "train.txt")]
)
def test_a_pipe_blocks_nobody(folder, kind, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    splits = ["train"] if kind == "voc" else []
    message = complaint(lambda: read(source(kind, folder, *splits)))
    assert f"{folder}/{name} is not a file; correct it" in message


def test_labels_may_lie_beside_their_images_with_the_classes(tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all/1.png").write_bytes(picture(40, 30, 1))
    (tmp_path / "all/1.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "all/classes.txt").write_text("cat\ndog\n")
    asked = source("yolo", tmp_path).model_dump()
    asked["splits"]["train"] = {"images": "all", "annotations": "all"}
    asked["classes"] = "all/classes.txt"
    (one,) = read(type(source("yolo", tmp_path)).model_validate(asked))[1]["train"]
    assert one.corners.tolist() == [[10, 7.5, 30, 22.5]]
    assert one.labels.tolist() == [1]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_box_that_leaves_by_a_pixel_is_cut(kind, tmp_path):
    WRITERS[kind](tmp_path, [Drawn(40, 30, [(0, (-1, -0.5, 41, 30.75), False)])])
    (one,) = read(source(kind, tmp_path))[1]["train"]
    assert one.corners.tolist() == [[0, 0, 40, 30]]


def test_ten_thousand_faults_are_one_line(folder):
    content = json.loads((folder / "all.json").read_text())
    content["annotations"] = [{**content["annotations"][0], "bbox": [9, 9, 0, 0]}] * 10_000
    (folder / "all.json").write_text(json.dumps(content))
    message = complaint(lambda: read(source("coco", folder)))
    assert message.startswith(f"{folder} has 10,000 faults: {folder}/all.json, annotations[0] has")
    assert message.endswith("annotations[4] has no area in its image of 40×30 pixels; and 9,995 "
                            "more; mend them all")  # fmt: skip


def test_faults_of_all_splits_and_kinds_are_told_at_once(tmp_path):
    for split, first in (("train", 0), ("validation", 1)):
        coco(tmp_path, ONE, split, first)
        content = json.loads((tmp_path / f"{split}.json").read_text())
        content["annotations"][0]["bbox"] = [0, 0, 99, 1]
        content["images"].append({"id": 1, "file_name": "gone.png"})
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    message = complaint(lambda: read(source("coco", tmp_path, "train", "validation")))
    assert "has 4 faults: " in message
    for split in ("train", "validation"):
        assert f"{split}.json, annotations[0] leaves" in message
        assert f"{split}.json, images[1]: {tmp_path}/images/gone.png is missing" in message


@pytest.mark.parametrize("kind", FORMATS)
def test_a_class_that_only_another_split_has_is_a_fault(kind, tmp_path):
    WRITERS[kind](tmp_path, ONE, "train")
    WRITERS[kind](tmp_path, [Drawn(40, 30, [(1, (1.0, 1.0, 9.0, 9.0), False)])], "test", 1)
    if kind == "coco":
        content = json.loads((tmp_path / "train.json").read_text())
        content["categories"] = content["categories"][1:2]
        (tmp_path / "train.json").write_text(json.dumps(content))
    message = complaint(lambda: read(source(kind, tmp_path, "train", "test")))
    if kind == "yolo":  # one list for all splits
        assert message is None
    else:
        assert "is of class 'dog', which the training split does not know" in message


def test_categories_of_coco_are_the_same_by_their_names(tmp_path):
    coco(tmp_path, ONE, "train")
    coco(tmp_path, ONE, "test", 1)
    content = json.loads((tmp_path / "test.json").read_text())
    for row, key in [
        *((c, "id") for c in content["categories"]),
        (content["annotations"][0], "category_id"),
    ]:
        row[key] = 100 - row[key]
    (tmp_path / "test.json").write_text(json.dumps(content))
    classes, found = read(source("coco", tmp_path, "train", "test"))
    assert classes == CLASSES
    assert found["train"][0].labels.tolist() == found["test"][0].labels.tolist() == [0]


def turned(path, orientation):
    """A JPEG of 20×10 stored pixels, and how it wants to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 10)).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_are_of_the_image_as_it_is_shown(tmp_path, orientation):
    shown = (10, 20) if orientation > 4 else (20, 10)
    box = (1.0, 2.0, float(shown[0]), float(shown[1]))
    coco(tmp_path, [Drawn(*shown, [(0, box, False)])])
    turned(tmp_path / "images/0000.jpg", orientation)
    (tmp_path / "images/0000.jpg").rename(tmp_path / "images/0000.png")
    (one,) = read(source("coco", tmp_path))[1]["train"]
    assert one.corners.tolist() == [list(box)]
    assert png.pillow(one.file, "").shape[:2] == shown[::-1]
    content = json.loads((tmp_path / "all.json").read_text())
    content["images"][0] |= {"width": shown[1], "height": shown[0]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    assert f"{shown[0]}×{shown[1]} pixels as it is shown" in complaint(
        lambda: read(source("coco", tmp_path))
    )


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP"])
def test_other_images_than_png_and_jpeg_become_png(folder, kind):
    """A served model takes these two."""
    file = picture(40, 30, 0, kind)
    (folder / "images/0000.png").write_bytes(file)
    (one,) = read(source("coco", folder))[1]["train"]
    assert one.file.startswith(b"\x89PNG")
    assert np.array_equal(png.pillow(one.file, ""), png.pillow(file, ""))


def test_links_may_stay_in_the_folder(folder):
    image = folder / "images/0000.png"
    image.rename(folder / "elsewhere.png")
    image.symlink_to("../elsewhere.png")
    assert len(read(source("coco", folder))[1]["train"]) == 1


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_links_never_leave_the_folder(folder, kind):
    images = folder / {"voc": "JPEGImages", "yolo": "images/all"}[kind]
    (images / "0000.png").unlink()
    (images / "0000.png").symlink_to(folder.parent / "secret.png")
    assert f"0000.png leads out of {folder}" in complaint(lambda: read(source(kind, folder)))


@pytest.mark.parametrize(
    ("kind", "key", "value", "words"),
    [
        ("coco", "folder", None, "boxes.folder is null; say where images and annotations lie"),
        ("coco", "splits", None, "boxes.splits is null; say where images and annotations lie"),
        ("yolo", "classes", None, "boxes.classes is null; name it as it is called below {folder}"),
        ("yolo", "classes", "x.yaml", "boxes.classes: {folder}/x.yaml is missing; put it there"),
        ("yolo", "classes", "../x", "boxes.classes: {folder}/../x leads out of {folder}"),
        ("coco", "folder", "/nowhere", "boxes.splits.train.images: /nowhere/images is missing"),
    ],
)  # fmt: skip
def test_a_place_that_is_not_there_is_named(folder, kind, key, value, words):
    asked = source(kind, folder).model_copy(update={key: value})
    assert words.format(folder=folder) in complaint(lambda: read(asked))


@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_are_not_decoded_to_read_boxes(kind, tmp_path, monkeypatch):
    WRITERS[kind](tmp_path, scenes(8))
    monkeypatch.setattr(png, "pillow", lambda *_: pytest.fail("decoded"))
    assert len(read(source(kind, tmp_path))[1]["train"]) == 8


# prepare


def rows(made):
    return {split: made.splits[split].data.table.to_pylist() for split in SPLITS}


def test_one_box_that_ends_between_pixels_shows_that_any_can(tmp_path):
    given_scenes = scenes(20)
    label, corners, ignore = given_scenes[3].boxes[0]
    given_scenes[3].boxes[0] = label, (corners[0] + 0.25, *corners[1:]), ignore
    WRITERS["coco"](tmp_path, given_scenes)
    found = {seed: prepare(source("coco", tmp_path), seed, None) for seed in range(8)}
    assert {made.facts.whole for made in found.values()} == {False, True}
    for made in found.values():
        sides = np.array([box for row in rows(made)["train"] for box in row["boxes"]])
        assert made.facts.whole == (sides == sides.round()).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_data_set_is_cut_into_splits(kind, tmp_path):
    given_scenes = scenes(20)
    WRITERS[kind](tmp_path / "raw", given_scenes)
    made = prepare(source(kind, tmp_path / "raw"), 0, None)
    assert {split: len(part) for split, part in rows(made).items()} == {
        "train": 12, "validation": 4, "test": 4,
    }  # fmt: skip
    files = {picture(s.width, s.height, n): s for n, s in enumerate(given_scenes)}
    for row in (row for part in rows(made).values() for row in part):
        one = files.pop(row["image"]["bytes"])
        assert row["boxes"] == pytest.approx(np.array([list(b[1]) for b in one.boxes]), abs=1e-4)
        assert row["labels"] == [label for label, _, _ in one.boxes]
        assert row["ignore"] == [False] * len(one.boxes)
    assert not files
    assert made.dropped == {"repeats": [], "conflicts": []}
    write(tmp_path / "data", "object_detection", made, 0)
    facts = read_card(tmp_path / "data").facts
    assert facts.classes == CLASSES
    assert facts.channels == 3
    assert facts.whole
    again, other = (prepare(source(kind, tmp_path / "raw"), seed, None) for seed in (0, 1))
    assert rows(again) == rows(made) != rows(other)
    assert all(
        len(part) == 2 for part in rows(prepare(source(kind, tmp_path / "raw"), 0, 2)).values()
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_data_set_may_have_splits_of_its_own(kind, tmp_path):
    for number, split in enumerate(SPLITS):
        WRITERS[kind](tmp_path, scenes(8, number), split, 100 * number)
    made = rows(prepare(source(kind, tmp_path, *SPLITS), 0, None))
    for number, split in enumerate(SPLITS):
        expected = {
            picture(s.width, s.height, 100 * number + n) for n, s in enumerate(scenes(8, number))
        }
        assert {row["image"]["bytes"] for row in made[split]} == expected
    made = rows(prepare(source(kind, tmp_path, "train", "test"), 0, None))
    assert {split: len(part) for split, part in made.items()} == {
        "train": 6,
        "validation": 2,
        "test": 8,
    }


def test_frames_that_are_left_out_are_told(tmp_path):
    yolo(tmp_path, scenes(12))
    path = tmp_path / "images/all/0003.png"
    still = Image.open(path)
    still.save(
        path, "PNG", save_all=True, append_images=[still.transpose(Image.Transpose.ROTATE_180)]
    )
    left_out = prepare(source("yolo", tmp_path), 0, None).left_out()
    assert left_out == [{"reason": "frames", "row": "images/all/0003.png", "equals": ""}]


def test_repeats_stay_where_they_are_measured_and_conflicts_nowhere(tmp_path):
    for first, split in enumerate(("train", "test")):
        yolo(tmp_path, scenes(12), split, 50 * first)
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("0001", "0002"):
        (images / f"train/{name}.png").write_bytes(
            (images / f"test/00{50 + int(name)}.png").read_bytes()
        )
        (labels / f"train/{name}.txt").write_bytes(
            (labels / f"test/00{50 + int(name)}.txt").read_bytes()
        )
    (labels / "train/0002.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    made = prepare(source("yolo", tmp_path, "train", "test"), 0, None)
    assert made.left_out() == [
        {"reason": reason, "row": f"images/{row}.png", "equals": equals and f"images/{equals}.png"}
        for reason, row, equals in (
            ("repeats", "train/0001", "test/0051"),
            ("conflicts", "test/0052", ""),
            ("conflicts", "train/0002", "test/0052"),
        )
    ]
    found = rows(made)
    assert len(found["test"]) == 11
    assert len(found["train"]) + len(found["validation"]) == 10
    repeated = (images / "test/0051.png").read_bytes()
    assert repeated in [row["image"]["bytes"] for row in found["test"]]


def told_by_coco(folder, **columns):
    """COCO of 40 images, whose entries have these further keys; a list has the values in turn."""
    coco(folder, scenes(40))
    file = folder / "all.json"
    content = json.loads(file.read_text())
    for number, row in enumerate(content["images"]):
        row |= {key: values[number % len(values)] for key, values in columns.items()}
    file.write_text(json.dumps(content))
    return {
        picture(one.width, one.height, number): content["images"][number]
        for number, one in enumerate(scenes(40))
    }


def test_images_stay_in_the_split_that_coco_says(tmp_path, capsys):
    images = told_by_coco(tmp_path, split=["train"] * 4 + ["Testing"], license=[1], camera=["x"])
    found = rows(prepare(source("coco", tmp_path), 0, None))
    for split, part in found.items():
        told = {images[row["image"]["bytes"]]["split"] for row in part}
        assert told == {"Testing" if split == "test" else "train"}
    assert {split: len(part) for split, part in found.items()} == {
        "train": 26, "validation": 6, "test": 8,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert f"{tmp_path}: not read: 'camera'\n" in said
    assert f"{tmp_path}: the images' own splits are kept: 32 train, 8 test\n" in said


def test_a_split_that_coco_and_the_settings_say_otherwise_is_a_fault(tmp_path):
    told_by_coco(tmp_path, split=["train"])
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_bytes((tmp_path / "all.json").read_bytes())
    given = source("coco", tmp_path, "train", "test")
    assert "images[0] says that it is of train, boxes.splits that it is of test; mend" in complaint(
        lambda: prepare(given, 0, None)
    )


def test_images_of_a_group_stay_in_one_split(tmp_path, capsys):
    images = told_by_coco(tmp_path, patient=[f"p{number}" for number in range(10)])
    made = prepare(source("coco", tmp_path).model_copy(update={"group": "patient"}), 0, None)
    write(tmp_path / "data", "object_detection", made, 0)
    patients = []
    for split in SPLITS:
        _, table = read_split(tmp_path / "data", split, "object_detection")
        names = table["patient"].to_pylist()
        assert names == [images[row["bytes"]]["patient"] for row in table["image"].to_pylist()]
        patients += sorted({*names})
    assert sorted(patients) == sorted(f"p{number}" for number in range(10))
    assert "split by patient, 10 groups: validation has " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["voc", "yolo", "scenes"])
def test_other_sources_have_no_groups(kind, tmp_path):
    given = boxes_source(group="patient")
    if kind in WRITERS:
        WRITERS[kind](tmp_path, scenes(9))
        given = source(kind, tmp_path).model_copy(update={"group": "patient"})
    said = complaint(lambda: prepare(given, 0, None))
    assert "boxes.group: " in said
    assert "has no further column 'patient'; it has none" in said


def test_classes_that_nobody_can_tell_apart_are_a_question(tmp_path):
    WRITERS["coco"](tmp_path, scenes(9))
    file = tmp_path / "all.json"
    file.write_text(file.read_text().replace('"owl"', '"Cat"'))
    said = complaint(lambda: prepare(source("coco", tmp_path), 0, None))
    assert "has 1 fault: 'Cat' (" in said
    assert "are they one class?" in said


@pytest.mark.parametrize(
    ("given_scenes", "words"),
    [
        (scenes(2), "boxes source coco: 'image' has 2 distinct examples, too few for the splits"),
        ([Drawn(9, 9, [])] * 9, "boxes source coco, split train: has no box that counts"),
        ([Drawn(9, 9, [(0, (1, 1, 5, 5), True)])] * 9, "split train: has no box that counts"),
        ([], "boxes source coco: 'image' has 0 distinct examples, too few for the splits"),
    ],
)
def test_too_little_is_one_line(tmp_path, given_scenes, words):
    coco(tmp_path, given_scenes)
    assert words in complaint(lambda: prepare(source("coco", tmp_path), 0, None))
