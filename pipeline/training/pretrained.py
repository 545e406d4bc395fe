"""Networks of transformers that were trained elsewhere: where they lie, and what is read of them.

Code that comes with weights is never run (`trust_remote_code=False`), and weights are safetensors
or refused.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import digest, refuse_other

TRUSTED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "*token*", "vocab*"]
HUB_FILES += ["merges.txt", "*.model", "added_tokens.json"]
HUB_FILES += ["generation_config.json", "chat_template.jinja"]


def refuse_incomplete(folder: Path, key: str, advice: str, weights: bool = True) -> None:
    """Make sure that a folder has a config, and weights that are no pickle, if they are needed.

    Raises:
        PipelineError: it has not; `key` is the setting that names the folder, `advice` what helps.
    """
    if not (folder / "config.json").is_file():
        raise PipelineError(f"{key}: {folder}/config.json is missing; {advice}")
    if weights and not any(folder.glob("*.safetensors")):
        raise PipelineError(
            f"{key}: {folder} has no *.safetensors (pickled weights are never read); {advice}"
        )


def download(name: str, revision: str | None, key: str, instead: str) -> Path:
    """The Hub's files in the local cache, fetched if they are not there yet.

    Raises:
        PipelineError: there is no such network, or the Hub can't be reached; `key` is the setting
            that has the name, `instead` a choice that needs no Hub.
    """
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = f"{key}: {name!r} (revision {revision or 'main'})"
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=HUB_FILES,
                ignore_patterns="*/*",  # other formats of the same weights
            )
        )
    except HFValidationError as error:
        raise PipelineError(f"{where} is no name of the Hub: {line(error)}") from error
    except (LocalEntryNotFoundError, httpx2.TransportError) as error:
        raise PipelineError(
            f"{where} is not in the local cache and the Hugging Face Hub can't be reached; "
            f"check the network (and HF_HUB_OFFLINE), or choose {instead}"
        ) from error
    except HfHubHTTPError as error:
        raise PipelineError(
            f"{where} can't be had from the Hugging Face Hub: {line(error)}"
        ) from error


def check_digest(folder: Path, sha256: str | None, key: str) -> None:
    """Make sure that `model.safetensors` is the expected file, where one is.

    Raises:
        PipelineError: it is another one; `key` is the setting that says which.
    """
    if sha256 is None:
        return
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise PipelineError(
            f"{key}: {weights} is missing, only that file can be checked; "
            "set the digest to null for weights in several files"
        )
    refuse_other(weights, digest(weights, "sha256"), sha256, key)


def identity(folder: Path) -> str:
    """Hex sha256 of the weights; of several files, of their digests in the order of their names."""
    each = [digest(path, "sha256") for path in sorted(folder.glob("*.safetensors"))]
    return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()


@contextmanager
def opened(folder: Path, kind: str, group: str) -> Iterator[Any]:
    """Transformers without its notices and bars; its errors over `folder` become one line.

    Imported here: 0.6 s, and 1.5 s more with the first model.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, which the writer of the folder explains
        raise PipelineError(
            f"{folder} can't be loaded as a {kind}: {line(error)}; "
            f"check its files or choose another {group}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def line(error: Exception) -> str:
    """The start of a message that may have many lines."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:299]}…"
