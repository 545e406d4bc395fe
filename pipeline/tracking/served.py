"""The code of a logged model ("models from code"): raw inputs in, labels and probabilities out.

MLflow copies this file into the model and runs it there, with the shipped part of `pipeline` on
the path and without the rest. What it takes, in a list or a one-column DataFrame:

* images: PNG or JPEG bytes, or uint8 arrays [height, width], [height, width, channels] or
  [channels, height, width];
* texts: strings;
* sounds: bytes of a 16-bit WAV file of any rate, or arrays of float (-1..1) or int16 samples at
  the model's rate;
* bytes may be given as base64 text, as JSON requests have to.

MLflow also runs this file when it saves a model, so torch is imported only when one is loaded.

For each it answers `{"label": "7", "probabilities": {"0": 0.001, …}}`.
"""

import base64
import io
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 64  # examples in one forward pass


class Classifier(PythonModel):
    """A trained model of this pipeline."""

    def load_context(self, context: Any) -> None:
        """Read the weights."""
        from pipeline import models

        self._loaded = models.load(Path(context.artifacts["model"]))

    def predict(self, model_input: list[Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        """Classify raw inputs.

        Raises:
            ValueError: an input is not of a kind that the module's docstring lists.
        """
        import torch

        answers = []
        for first in range(0, len(model_input), BATCH):
            inputs = self._inputs(model_input[first : first + BATCH])
            with torch.inference_mode():
                logits = self._loaded.model(**inputs)
            logits = getattr(logits, "logits", logits).float()
            for row in logits.softmax(dim=1).tolist():
                chances = dict(zip(self._loaded.classes, row, strict=True))
                best = max(chances, key=lambda name: chances[name])
                answers.append({"label": best, "probabilities": chances})
        return answers

    def _inputs(self, raw: list[Any]) -> "dict[str, Tensor]":
        import torch

        about = self._loaded.description
        match about.model:
            case "cnn":
                size = (about.height, about.width)
                images = np.stack([image(each, about.channels, size) for each in raw])
                return {"images": torch.from_numpy(images)}
            case "rnn":
                waves = [torch.from_numpy(sound(each, about.sample_rate)) for each in raw]
                lengths = torch.tensor([len(each) for each in waves])
                padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
                return {"waveforms": padded, "lengths": lengths}
            case _:
                if wrong := [type(each).__name__ for each in raw if not isinstance(each, str)]:
                    raise ValueError(f"a text is a string, not {wrong[0]}")
                found = self._loaded.tokenizer(
                    raw,
                    padding=True,
                    truncation=True,
                    max_length=about.settings.max_length,
                    return_token_type_ids=False,
                    return_tensors="pt",
                )
                return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def image(raw: Any, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One image as uint8 [channels, height, width], brought to the size the model takes."""
    from PIL import Image, ImageOps

    if isinstance(raw, bytes | str):
        content = io.BytesIO(_bytes(raw))
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
    if channels in (1, 3):
        picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def sound(raw: Any, rate: int) -> NDArray[np.float32]:
    """One clip as float32 samples in -1..1, mono, at the model's rate."""
    if not isinstance(raw, bytes | str):
        array = np.asarray(raw)
        if array.ndim != 1 or not array.size:
            raise ValueError(f"a sound has one dimension and a sample, not {list(array.shape)}")
        scale = 32768 if array.dtype == np.int16 else 1
        return (array / scale).astype(np.float32)
    with wave.open(io.BytesIO(_bytes(raw))) as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"a WAV file has 16 bits, not {8 * file.getsampwidth()}")
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        samples = frames.reshape(-1, file.getnchannels()).mean(axis=1) / 32768
        before = file.getframerate()
    if before != rate:
        from scipy.signal import resample_poly

        shared = int(np.gcd(rate, before))
        samples = resample_poly(samples, rate // shared, before // shared)
    return samples.astype(np.float32)


def _bytes(raw: bytes | str) -> bytes:
    if isinstance(raw, bytes):
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except ValueError:
        raise ValueError(
            f"a string is base64 text here, not {raw[:20]!r}; of a file, give the bytes"
        ) from None


set_model(Classifier())
