"""What a served model says about inputs that it can't take."""

import io
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.tracking.served import image, sound


def test_bytes_that_are_no_image():
    with pytest.raises(ValueError, match=r"no image that can be read .*; PNG and JPEG are taken"):
        image(b"GIF or so", 1, (28, 28))


@pytest.mark.parametrize("kind", ["cut", "bomb", "webp"])
def test_a_picture_that_can_not_be_read_is_no_image(kind):
    file = io.BytesIO()
    size = (20000, 20000) if kind == "bomb" else (28, 28)
    Image.new("1", size).save(file, "WEBP" if kind == "webp" else "PNG")
    content = file.getvalue()[:45] if kind == "cut" else file.getvalue()
    with pytest.raises(ValueError, match="these bytes are no image that can be read"):
        image(content, 1, (28, 28))


@pytest.mark.parametrize(
    "take", [lambda raw: image(raw, 1, (28, 28)), lambda raw: sound(raw, 8000)]
)
def test_a_path_is_told_from_base64(take):
    with pytest.raises(ValueError, match=r"base64 text here, not 'digits/7\.png'; of a file"):
        take("digits/7.png")


def test_an_image_of_another_size_and_mode_is_brought_to_the_models():
    file = io.BytesIO()
    Image.fromarray(np.full((56, 56, 3), 200, np.uint8)).save(file, "PNG")
    assert (image(file.getvalue(), 1, (28, 28)) == np.full((1, 28, 28), 200)).all()


def test_a_taken_port_is_one_line(workspace):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "pipeline.tracking", "ui", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: 127.0.0.1:{port} can't be listened on (")
    assert f"make ui PORT={port + 1}" in done.stderr
