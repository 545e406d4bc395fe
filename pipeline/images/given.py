"""An image as whoever asks a served model gives it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.training.net import file_bytes


def given(raw: Any, channels: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """One image as uint8 [channels, height, width].

    Args:
        raw: a PNG or JPEG file, its bytes or base64 text; or an array of 0 to 255: [height, width],
            [height, width, channels] or [channels, height, width].
        channels: 1 (grey) or 3 (RGB).
        size: height and width that it is brought to; None leaves it as it is.

    Raises:
        ValueError: it is none of these.
    """
    from PIL import Image

    if isinstance(raw, bytes | str):
        try:
            array = png.pillow(file_bytes(raw), "the image", channels, ("JPEG", "PNG"))
        except PipelineError as error:
            raise ValueError(f"{error}; PNG and JPEG are taken") from None
    else:
        array = np.asarray(raw)
        if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
            array = array.astype(np.uint8)
        channelled = array.ndim == 3 and {array.shape[0], array.shape[2]} & {1, 3}
        if array.dtype != np.uint8 or not array.size or not (array.ndim == 2 or channelled):
            raise ValueError(
                "an image is PNG or JPEG bytes or an array of 0 to 255 with 2 dimensions or 1 or 3 "
                f"channels, not {array.dtype} {list(array.shape)}"
            )
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
            array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    picture = Image.fromarray(array).convert("L" if channels == 1 else "RGB")
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1))
