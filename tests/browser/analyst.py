"""What an analyst does in the MLflow UI, as clicks in Chromium."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking",
]  # fmt: skip
# MLflow's assistant opens itself at the first visit and covers the page
QUIET = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


def chromium() -> str | None:
    """The browser's path, None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def ui(repository: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run `python -m pipeline.tracking ui` in a repository; yields the address that it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking", "ui", "--port", str(port)],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        address, lines = "", []
        assert server.stdout
        for line in server.stdout:
            lines.append(line)
            if found := re.search(r"the runs are on (\S+)", line):
                address = found[1]
            if "Application startup complete" in line:
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(lines)}")
        with open(os.devnull, "w") as nowhere:  # it would wait for a reader of its full pipe
            drain = subprocess.Popen(["cat"], stdin=server.stdout, stdout=nowhere)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    drain.wait()


@contextmanager
def browser(width: int = 1600, height: int = 900) -> Iterator[Any]:
    """A page in headless Chromium; `page.asked` are the addresses it asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        context = chrome.new_context(viewport={"width": width, "height": height})
        context.add_init_script(QUIET)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
        chrome.close()


def row(page: Any, name: str) -> Any:
    """The left part of each row with that run name, the newest run first."""
    link = page.get_by_role("link", name=name, exact=True)
    return page.locator(".ag-pinned-left-cols-container .ag-row, .ag-row", has=link)


def expand(page: Any, name: str) -> None:
    """Show the runs below a parent."""
    row(page, name).first.locator("button").first.click()


def show_columns(page: Any, *names: str) -> None:
    """Add metrics to the columns of the runs table."""
    page.get_by_role("button", name="Columns", exact=True).click()
    for name in names:
        page.get_by_placeholder("Search columns").fill(name)
        # the label of a metric holds its name twice, once with the match in bold
        page.get_by_role("tree").get_by_title(name, exact=True).click()
    page.keyboard.press("Escape")


def cell(page: Any, run_id: str, column: str) -> str:
    """The text of a cell of the runs table."""
    text: str = page.locator(f".ag-row[row-id='{run_id}'] [col-id*='{column}']").inner_text()
    return text.strip()
