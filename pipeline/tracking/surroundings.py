"""What surrounds a process: workspace and store, who lives, who runs it, who sends."""

import getpass
import logging
import os
import re
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from filelock import FileLock

from pipeline.tracking.masking import MASK, clean, is_secret

_CREDENTIAL = re.compile(
    r"MLFLOW_TRACKING_(USERNAME|PASSWORD|TOKEN|AWS_SIGV4|CLIENT_CERT_PATH)|DATABRICKS_TOKEN"
    r"|AWS_(ACCESS_KEY_ID|PROFILE)|AZURE_STORAGE_\w+|GOOGLE_APPLICATION_CREDENTIALS"
)


def root() -> Path:
    """Where the store and the journals are: the DVC workspace, also from a temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or Path(__file__).parents[2]).resolve()


def escaped(path: Path) -> str:
    """A path as it stands in a URI: SQLAlchemy and MLflow read `%41`, `#` and `?`."""
    return quote(str(path), safe="/ ")


def sqlite_uri(file: Path) -> str:
    """The URI of a database file."""
    path = escaped(file)
    # for `sqlite:///` MLflow makes the folder of the path without reading what is escaped in it
    driver = "sqlite" if path == str(file) else "sqlite+pysqlite"
    return f"{driver}:///{path}"


def database(root: Path) -> Path:
    """A workspace's own store."""
    return root / "mlflow.db"


def store_uri() -> str:
    """The store's: `$MLFLOW_TRACKING_URI`, or the workspace's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(database(root()))


def created(pid: int) -> float:
    """When a process was created, in a count that setting the clock does not change."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    # psutil would add the boot time, which moves with the clock
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def this_process() -> dict[str, Any]:
    """What tells a live process from a dead one: host, pid and when it was created."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "created": created(os.getpid())}


def is_alive(pid: int, when: float) -> bool:
    """Whether the process of this host that was created then still runs."""
    try:
        return created(pid) == when and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, OSError):
        return False


def dvc() -> dict[str, Any]:
    """Names that DVC gives to a stage, and the dvc process that runs it; empty outside DVC.

    No variable of DVC names one `dvc repro`; the nearest dvc process above this one does.
    """
    stage = os.environ.get("DVC_STAGE")
    if not stage:
        return {}
    found: dict[str, Any] = {
        "stage": stage,
        "experiment": os.environ.get("DVC_EXP_NAME", ""),
        "command": [],
    }
    for process in psutil.Process().parents():
        try:
            arguments = process.cmdline()
            names = [Path(argument).name for argument in arguments[:3]]
            if "dvc" in names:
                found["process"] = {"pid": process.pid, "created": created(process.pid)}
                found["command"] = ["dvc", *map(_clean, arguments[names.index("dvc") + 1 :])]
                break
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


def user() -> str:
    """Login name, `unknown` where the system has none for this user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def credentials(uri: str) -> list[str]:
    """Names of this process's variables that hold credentials for a store, `uri` without them."""
    if uri.startswith("sqlite"):
        return []
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    inside = ["MLFLOW_TRACKING_URI"] if given != uri == clean(given) else []
    return inside + sorted(name for name in os.environ if _CREDENTIAL.fullmatch(name))


def lock(folder: Path, uri: str) -> FileLock:
    """What the sender of a workspace and store holds; `folder` is `{root}/.tracking`."""
    name = re.sub(r"\W+", "-", uri)[-100:]
    return FileLock(folder / f"{name}.lock")


def give_way() -> None:
    """Let what trains go first."""
    os.nice(10)
    with suppress(OSError, AttributeError):  # waking up, it interrupts nobody
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if os.getsid(0) == os.getpid():  # where sessions share the cores, `nice` counts within one
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text("10")  # sched(7)


def quiet() -> None:
    """Make mlflow in this process silent, impatient and deaf to what the user exported."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # a file that was replaced meanwhile is opened anew
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _clean(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key.startswith("--") and "=" in value:
        return f"{key}={_clean(value)}"
    return f"{key}={MASK}" if equals and is_secret(key) else clean(argument)
