"""An image as whoever asks a served model gives it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.training.net import file_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def given(raw: Any, channels: int) -> "Picture":
    """One image in its own size.

    Args:
        raw: a PNG or JPEG file, its bytes or base64 text; or an array of 0 to 255: [height, width],
            [height, width, channels] or [channels, height, width].
        channels: 1 (grey) or 3 (RGB).

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
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(
                "an image is PNG or JPEG bytes or an array of 0 to 255 with 2 or 3 dimensions, "
                f"not {array.dtype} {list(array.shape)}"
            )
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
            array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(array).convert("L" if channels == 1 else "RGB")
