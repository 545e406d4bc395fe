"""What a served model says about images that it can't take."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.images.given import given


def test_bytes_that_are_no_image():
    with pytest.raises(ValueError, match=r"not an image that can .*; PNG and JPEG are taken"):
        given(b"GIF or so", 1, (28, 28))


@pytest.mark.parametrize("kind", ["cut", "bomb", "webp", "16 bits"])
def test_a_picture_that_can_not_be_read_is_no_image(kind):
    file = io.BytesIO()
    size = (20000, 20000) if kind == "bomb" else (28, 28)
    Image.new("I;16" if kind == "16 bits" else "1", size).save(
        file, "WEBP" if kind == "webp" else "PNG"
    )
    content = file.getvalue()[:45] if kind == "cut" else file.getvalue()
    with pytest.raises(ValueError, match="not an image that can be read"):
        given(content, 1, (28, 28))


def test_a_path_is_told_from_base64():
    with pytest.raises(ValueError, match=r"base64 text here, not 'digits/7\.png'; of a file"):
        given("digits/7.png", 1, (28, 28))


def test_an_image_of_another_size_and_mode_is_brought_to_the_models():
    file = io.BytesIO()
    Image.fromarray(np.full((56, 56, 3), 200, np.uint8)).save(file, "PNG")
    assert (given(file.getvalue(), 1, (28, 28)) == np.full((1, 28, 28), 200)).all()


NO_IMAGES = [np.zeros(shape, np.uint8) for shape in ((5, 5, 5), (0, 5), (9,))]


@pytest.mark.parametrize("array", [*NO_IMAGES, [[0.5]], "x"], ids=str)
def test_an_array_that_is_no_image(array):
    with pytest.raises(ValueError, match=r"an image is PNG or JPEG|base64"):
        given(array, 1, (4, 4))
