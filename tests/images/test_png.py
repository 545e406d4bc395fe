import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import EpsImagePlugin, Image

from pipeline.errors import PipelineError
from pipeline.images import given as served
from pipeline.images import png
from tests.data.sources import complaint

images = st.tuples(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])
).flatmap(lambda shape: arrays.arrays(np.uint8, shape))


def decode(column: pa.ChunkedArray, pixels: np.ndarray) -> np.ndarray:
    _, height, width, channels = pixels.shape
    shape = (channels, height, width)
    return png.decode(column, shape, "x.parquet").transpose(0, 2, 3, 1)


@settings(max_examples=60, deadline=None)
@given(images)
def test_pillow_reads_the_pixels_that_were_encoded(pixels):
    for file, expected in zip(png.encode(pixels).to_pylist(), pixels, strict=True):
        with Image.open(io.BytesIO(file)) as image:
            image.load()
            assert image.mode == ("L" if pixels.shape[3] == 1 else "RGB")
            assert (np.asarray(image).reshape(expected.shape) == expected).all()


@settings(max_examples=60, deadline=None)
@given(images)
def test_decoding_gives_back_what_was_encoded(pixels):
    assert (decode(png.encode(pixels), pixels) == pixels).all()


def test_images_longer_than_one_deflate_block_round_trip():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 150, 310, 3), dtype=np.uint8)
    column = png.encode(pixels)
    assert len(column[0].as_py()) == 57 + 6 + 3 * 5 + 150 * (1 + 3 * 310)
    with Image.open(io.BytesIO(column[1].as_py())) as image:
        assert (np.asarray(image) == pixels[1]).all()
    assert (decode(column, pixels) == pixels).all()


def test_a_slice_of_a_column_decodes_to_its_own_images():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 5, 1), dtype=np.uint8)
    column = png.encode(pixels)
    assert (decode(column[3:8], pixels) == pixels[3:8]).all()
    joined = pa.chunked_array([*column[5:].chunks, *column[:2].chunks])
    assert (decode(joined, pixels) == pixels[[5, 6, 7, 8, 0, 1]]).all()


def test_files_that_another_program_wrote_decode_too():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    assert (decode(pa.chunked_array([files], pa.binary()), pixels) == pixels).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_an_image_is_noticed_and_named(data):
    pixels = np.arange(3 * 6 * 5, dtype=np.uint8).reshape(3, 6, 5, 1)
    files = png.encode(pixels).to_pylist()
    # the last 12 bytes only mark the end of the file
    place = data.draw(st.integers(0, len(files[1]) - 13))
    broken = bytearray(files[1])
    broken[place] ^= 1 << data.draw(st.integers(0, 7))
    files[1] = bytes(broken)
    column = pa.chunked_array([files], pa.binary())
    message = complaint(lambda: decode(column, pixels))
    if message is None:
        # what Pillow forgives must not have changed a pixel
        assert (decode(column, pixels) == pixels).all()
    else:
        assert "x.parquet, row 1" in message


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (None, "has no image bytes"),
        (b"", "is not an image"),
        (b"GIF89a", "is not an image"),
        (png.encode(np.zeros((1, 4, 9, 1), np.uint8))[0].as_py(), "is 9×4, the data set 5×6"),
    ],
)
def test_an_image_that_does_not_belong_is_named_with_its_row(file, reason):
    pixels = np.zeros((2, 6, 5, 1), np.uint8)
    column = pa.chunked_array([[*png.encode(pixels).to_pylist(), file]], pa.binary())
    with pytest.raises(PipelineError, match=f"x.parquet, row 2: {reason}"):
        decode(column, pixels)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"])
)
def test_arbitrary_bytes_are_refused_in_one_line(content, start):
    message = complaint(lambda: png.pillow(start + content, "a.png"))
    assert message is None or (message.startswith("a.png: ") and "0x" not in message)


def test_sixteen_bit_images_are_refused_rather_than_clipped():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(PipelineError, match="more than 8 bits"):
        png.pillow(buffer.getvalue(), "a.png")


def test_a_bomb_of_pixels_is_refused():
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    with pytest.raises(PipelineError, match="decompression bomb"):
        png.pillow(buffer.getvalue(), "a.png")


@pytest.fixture
def ghostscript(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that a `gs` of the test's own leaves when it is called."""
    called, program = tmp_path / "called", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {called}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return called


@pytest.mark.parametrize(
    "read",
    [
        lambda content: png.pillow(content, "x.png"),
        lambda content: png.decode(
            pa.chunked_array([[content]], pa.binary()), (1, 8, 8), "x.parquet"
        ),
        lambda content: served.given(content, 1, (8, 8)),
    ],
    ids=["source", "split", "served"],
)
def test_postscript_starts_no_program(read, ghostscript):
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises((PipelineError, ValueError), match="image"):
        read(content)
    assert not ghostscript.exists()


@pytest.mark.parametrize("suffix", sorted(png.SUFFIXES))
def test_what_the_source_takes_by_its_name_can_be_read(suffix):
    file = io.BytesIO()
    Image.new("L", (5, 4), 7).save(file, Image.registered_extensions()[suffix])
    assert png.pillow(file.getvalue(), f"a{suffix}").shape[:2] == (4, 5)


FILES = [
    *(("PNG", mode) for mode in ("L", "LA", "P", "RGBA", "1")),
    *(("JPEG", mode) for mode in ("L", "CMYK")),
    *(("WEBP", "RGB"), ("TIFF", "RGB"), ("BMP", "L"), ("GIF", "P")),
]


@pytest.mark.parametrize("orientation", [None, *range(1, 10)])
@pytest.mark.parametrize(("kind", "mode"), FILES)
def test_an_image_is_measured_as_it_is_read(kind, mode, orientation):
    file, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new(mode, (20, 10)).save(file, kind, exif=exif)
    assert png.measure(file.getvalue(), "a") == png.pillow(file.getvalue(), "a").shape


@pytest.mark.parametrize("content", [b"", b"no image", b"cut", b"16 bits"])
def test_what_can_not_be_read_is_not_measured(content):
    if content in (b"cut", b"16 bits"):
        file = io.BytesIO()
        Image.new(*(("RGB", (300, 300)) if content == b"cut" else ("I;16", (9, 9)))).save(
            file, "PNG"
        )
        content = file.getvalue()[:-100] if content == b"cut" else file.getvalue()
    message = complaint(lambda: png.measure(content, "a.png"))
    assert message is not None
    assert message == complaint(lambda: png.pillow(content, "a.png"))
