"""The tracking store by hand.

python -m pipeline.tracking sync              send what stages could not send (`make sync`)
python -m pipeline.tracking drop URI          delete what is pending for a store that is gone
python -m pipeline.tracking ui [--port N]     open the store in MLflow's UI (`make ui`)
python -m pipeline.tracking moved             let the store of a moved or copied workspace be here
"""

import argparse
import os
import shlex
import shutil
import socket
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import PipelineError
from pipeline.streams import make_safe
from pipeline.tracking.journal import Journal, journals, was_elsewhere
from pipeline.tracking.masking import clean
from pipeline.tracking.operations import Begin
from pipeline.tracking.parents import parent_file, read_parents
from pipeline.tracking.reader import Reader
from pipeline.tracking.sender import leftovers
from pipeline.tracking.sender import sync as send
from pipeline.tracking.surroundings import (
    credentials,
    database,
    escaped,
    quiet,
    root,
    sqlite_uri,
    store_uri,
)


def sync() -> int:
    """Send what dead processes left; returns the exit status, 0 when the store has everything."""
    quiet()
    folder = root() / ".tracking"
    sent = send(folder)
    left = leftovers(folder)
    print(f"{sent} run(s) sent, {len(left)} pending")
    for journal, begin in left:
        missing = {*begin.credentials} - {*credentials(begin.uri)}
        needs = f"set {', '.join(sorted(missing))}" if missing else ""
        if was_elsewhere(begin, root()):
            needs = (
                f"it was recorded in {begin.root}; after a move "
                "`python -m pipeline.tracking moved` makes it this folder's, in a copy "
                f"`python -m pipeline.tracking drop {shlex.quote(begin.uri)}` deletes it"
            )
        print(f"{journal.folder} for {begin.uri}: {needs or journal.state().error or 'not sent'}")
    foreign = [
        path.parent for path in folder.glob("*/begin.json") if not Journal(path.parent).begin()
    ]
    for place in foreign:
        print(f"{place} is of another version of this project, which has to send it")
    return 1 if left or foreign else 0


def drop(uri: str) -> int:
    """Delete the journals of dead processes for a store that will not come back."""
    folder = root() / ".tracking"
    found = [
        journal for journal, begin in journals(folder)
        if begin.uri == clean(uri) and not journal.is_live(begin)
        # or an earlier one was killed while it deleted
        and (not journal.is_complete() or not journal.path.exists())
    ]  # fmt: skip
    for journal in found:
        shutil.rmtree(journal.folder)
        print(f"{journal.folder} is deleted")
    left = {(begin.parent, begin.uri) for _, begin in journals(folder)}
    for path, parent in read_parents(folder):
        one = parent.begin.parent, parent.begin.uri
        if one[1] == clean(uri) and one not in left and not parent.lives():
            path.unlink()
    print(f"{len(found)} journal(s) for {clean(uri)} deleted")
    return 0 if found else 1


def moved() -> int:
    """Let the store and the journals of a workspace that was elsewhere belong to this one."""
    from pipeline.tracking.store import elsewhere, relocate

    here, folder, file = root(), root() / ".tracking", database(root())
    try:
        if file.exists() and elsewhere(file):
            changed, backup = relocate(file)
            print(f"{changed} values of {file} changed; as it was it is in {backup}")
    except sqlite3.Error as error:
        raise PipelineError(
            f"{file} can't be read: {error}; put a backup there, or move it away for a new store"
        ) from error

    def begun_here(begin: Begin) -> Begin:
        own = begin.uri == sqlite_uri(database(Path(begin.root)))
        return replace(begin, root=str(here), uri=sqlite_uri(file) if own else begin.uri)

    strange = [(journal, one) for journal, one in journals(folder) if was_elsewhere(one, here)]
    for journal, one in strange:
        state, begin = journal.state(), begun_here(one)
        state.uri, state.error = begin.uri, ""
        journal.save(state)
        journal.write_begin(begin)
    for path, parent in read_parents(folder):
        if was_elsewhere(parent.begin, here):
            begin = begun_here(parent.begin)
            path.unlink()  # first: the name of the new one may be the same
            replace(parent, begin=begin).save(parent_file(folder, begin))
    pending = len(leftovers(folder))
    print(f"store and journals are those of {here} now; {pending} run(s) are pending")
    return 0


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
    # opened here it is created, if need be, without a race against a stage that does so too
    client = Reader(uri).store.client
    places = [found.experiment_id for found in client.search_experiments()]
    newest = client.search_runs(places, max_results=1)
    # MLflow's front page is about chat models
    page = f"experiments/{newest[0].info.experiment_id}/runs" if newest else "experiments"
    address = f"http://{host}:{port}/#/{page}?workflowType=machine_learning"
    print(f"the runs are on {address} (Ctrl-C ends MLflow)", flush=True)
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
    for command in (sync, drop, moved, ui):
        commands.add_parser(command.__name__).set_defaults(command=command)
    commands.choices["drop"].add_argument("uri", help="as `sync` names it")
    server = commands.choices["ui"]
    server.add_argument("--host", default="127.0.0.1", help="the UI asks nobody for a password")
    server.add_argument("--port", type=int, default=5000)
    given = vars(parser.parse_args(arguments))
    try:
        status: int | None = given.pop("command")(**given)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # the disk is full or can only be read
        print(f"error: {root() / '.tracking'}: {error}; mend that, then again", file=sys.stderr)
        return 1
    return status or 0


if __name__ == "__main__":
    make_safe()
    sys.exit(main(sys.argv[1:]))
