"""Files that sources are read from: of installed packages, and of folders that users name."""

from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import in_dvc_cache, lies_in


def package_file(package: str, path: str) -> Path:
    """Path of a data file or folder that an installed package carries.

    Raises:
        PipelineError: the package or the file is not there.
    """
    # find_spec runs no code of the package as long as the name has no dot.
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise PipelineError(
            f"the package {package} is not installed; install the locked packages again"
        )
    found = Path(next(iter(spec.submodule_search_locations))) / path
    if not found.exists():
        raise PipelineError(
            f"{path} is missing from the package {package}; install the locked packages again"
        )
    return found


def refuse_leaving(path: Path, root: Path, key: str) -> None:
    """Make sure that no link on the way from `root` to `path` leaves it; DVC's cache counts as in.

    Args:
        path: what will be read.
        root: its folder, or the one above that a setting names.
        key: that setting, for the message.

    Raises:
        PipelineError: a link does (a data set must not be able to name other files of the machine).
    """
    if not lies_in(path, root) and not in_dvc_cache(path):
        raise PipelineError(f"{key}: {path} leads out of {root}; put the file itself there")


def visible(folder: Path, root: Path, key: str) -> list[Path]:
    """What is in a folder, sorted by name; hidden entries are passed over.

    Raises:
        PipelineError: a name can't be printed, or a link leaves `root`, which `key` names.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in paths:
        if not path.name.isprintable():
            raise PipelineError(f"{key}: {str(path)!a} has unprintable characters; rename it")
        refuse_leaving(path, root, key)
    return paths
