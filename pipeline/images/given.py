"""An image as whoever asks a served model gives it."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

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
    from PIL import Image, ImageOps

    if isinstance(raw, bytes | str):
        content = io.BytesIO(file_bytes(raw))
        try:  # of other formats, Pillow calls `gs` for PostScript
            picture: Image.Image = Image.open(content, formats=("PNG", "JPEG"))
            picture = ImageOps.exif_transpose(picture)  # as in the data; it reads the pixels, too
        except Exception as error:  # Pillow's readers raise whatever malformed bytes lead them to
            raise ValueError(
                f"these bytes are no image that can be read ({type(error).__name__}); PNG and JPEG "
                "are taken"
            ) from None
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
        picture = Image.fromarray(array)
    return picture.convert("L" if channels == 1 else "RGB")
