"""What an analyst does in the MLflow UI, as clicks in Chromium."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking",
]  # fmt: skip
# at the first visit MLflow's assistant and, in the registry, an announcement cover the page
QUIET = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("_mlflow_model_registry_promo_modal_dismissed_v1", "true");
"""


def chromium() -> str | None:
    """The browser's path, None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


NAME = ".ag-row [col-id='attributes.`Run Name`']"


@contextmanager
def ui(repository: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run `python -m pipeline.tracking ui` in a repository; yields the address that it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking", "ui", "--port", str(port)],
            cwd=repository, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield _address(server, log)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _address(server: subprocess.Popen[bytes], log: TextIO) -> str:
    """The address that the server printed, once it answers."""
    end = time.monotonic() + 90
    while server.poll() is None and time.monotonic() < end:
        log.seek(0)
        text = log.read()
        if "Application startup complete" in text:
            return re.findall(r"the runs are on (\S+)", text)[0]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {text}")


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield chrome
        chrome.close()


@contextmanager
def page(chrome: Any, width: int = 1600, height: int = 900) -> Iterator[Any]:
    """A page of a browser that was never here before; `asked` are the addresses it asks for."""
    context = chrome.new_context(viewport={"width": width, "height": height})
    context.add_init_script(QUIET)
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    context.close()


def parents(page: Any) -> list[str]:
    """Names of the runs that have runs below them, the newest first."""
    found = page.locator(NAME, has=page.locator("button")).locator("a")
    found.first.wait_for()
    names: list[str] = found.all_inner_texts()
    return names


def expand(page: Any, parent: str) -> None:
    """Show the runs below a parent."""
    before = page.locator(NAME).count()
    named = page.locator(NAME, has=page.get_by_role("link", name=parent, exact=True))
    named.locator("button").click()
    page.wait_for_function(f"document.querySelectorAll({NAME!r}).length > {before}")


def runs(page: Any) -> list[tuple[str, str]]:
    """(run id, name) of the table's rows from top to bottom."""
    found = []
    for cell in page.locator(NAME).all():
        row = cell.locator("xpath=ancestor::*[@row-id]").first
        top = row.bounding_box()["y"]
        name = cell.locator("a").inner_text()
        found.append((top, row.get_attribute("row-id"), name))
    return [(run_id, name) for _, run_id, name in sorted(found)]


def toggle_columns(page: Any, *names: str) -> None:
    """Show or hide columns of the runs table; names that the store does not have are left out."""
    page.get_by_role("button", name="Columns", exact=True).click()
    for name in names:
        page.get_by_placeholder("Search columns").fill(name)
        entries = page.get_by_test_id("column-selector-tree").locator("[class$='tree-title']")
        entry = entries.filter(has_text=re.compile(f"^{re.escape(name)}$"))
        page.wait_for_timeout(300)  # the list follows what was typed
        if entry.count():
            entry.click()
    page.keyboard.press("Escape")


def cell(page: Any, run_id: str, column: str) -> str:
    """The text of a cell of the runs table."""
    text: str = page.locator(f".ag-row[row-id='{run_id}'] [col-id*='{column}`']").inner_text()
    return text.strip()
