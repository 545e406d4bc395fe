"""The tracking store by hand.

python -m pipeline.tracking sync              send what stages could not send (`make sync`)
python -m pipeline.tracking ui [--port N]     open the store in MLflow's UI (`make ui`)
"""

import argparse
import os
import socket
import sys
from typing import NoReturn
from urllib.parse import urlsplit

from pipeline.streams import make_safe
from pipeline.tracking.journal import escaped, root, store_uri
from pipeline.tracking.masking import clean
from pipeline.tracking.sending import Senders, quiet


def sync() -> int:
    """Send what dead processes left; returns the exit status, 0 when the store has everything."""
    quiet()
    senders = Senders(root() / ".tracking")
    sent = senders.send_leftovers(wait=60)
    left = senders.leftovers()
    print(f"{sent} run(s) sent, {len(left)} pending")
    for journal, begin in left:
        print(f"{journal.folder} for {begin['uri']}: {journal.state().error or 'not sent'}")
    return 1 if left else 0


def ui(host: str, port: int) -> None:
    """Become MLflow's server on this workspace's store; a store that is a server has a UI."""
    uri = store_uri()
    if urlsplit(uri).scheme in ("http", "https"):
        print(f"the store is a server; open {clean(uri)}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"{host}:{port} can't be listened on ({error.strerror})"
            sys.exit(f"error: {reason}; choose another port: make ui PORT={port + 1}")
    from pipeline.tracking.store import Store

    quiet()
    # opened here it is created, if need be, without a race against a stage that does so too
    client = Store(uri, root()).client
    places = [found.experiment_id for found in client.search_experiments()]
    newest = client.search_runs(places, max_results=1)
    # MLflow's front page is about chat models
    page = f"experiments/{newest[0].info.experiment_id}/runs" if newest else "experiments"
    address = f"http://{host}:{port}/#/{page}?workflowType=machine_learning"
    print(f"the runs are on {address} (Ctrl-C ends MLflow)", flush=True)
    _serve(host, port, uri)


def _serve(host: str, port: int, uri: str) -> NoReturn:
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)),
        *("--workers", "1", "--artifacts-destination", escaped(root() / "mlartifacts")),
    ]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # other users can read a command line
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 8 more processes, half a gigabyte
    }
    os.execve(sys.executable, command, environment)  # noqa: S606  # nosec B606 (no shell wanted)


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tracking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sync")
    server = commands.add_parser("ui")
    server.add_argument("--host", default="127.0.0.1", help="the UI asks nobody for a password")
    server.add_argument("--port", type=int, default=5000)
    given = parser.parse_args(arguments)
    if given.command == "sync":
        return sync()
    ui(given.host, given.port)
    return 0


if __name__ == "__main__":
    make_safe()
    sys.exit(main(sys.argv[1:]))
