"""A real browser for the walks, one watched page at a time, and the end of a server that a walk started."""

import contextlib
import shutil
import subprocess
from urllib.parse import urlparse

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "/usr/bin/chromium", "chromium-browser", "google-chrome"))), None
)
WAIT_MS = 600_000  # a server may share two cores with everything else: only what hangs is ended
LOCAL = ("127.0.0.1", "localhost", "", None)


@pytest.fixture(scope="module")
def browser():
    """Chromium through Playwright; a walk is skipped where one of them is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome found: install one (Debian: apt install chromium)")
    with playwright.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def new_page(browser):
    """A page of the given size in pixels; `page.elsewhere` collects every request that left this machine."""

    def made(width: int = 1280, height: int = 900):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(WAIT_MS)
        page.elsewhere = []
        for event in ("request", "websocket"):
            page.on(event, lambda r: page.elsewhere.append(r.url) if urlparse(r.url).hostname not in LOCAL else None)
        return page

    return made


@pytest.fixture(scope="session")
def ending():
    """A context that ends the server it was given, kindly first."""

    @contextlib.contextmanager
    def ended(server: subprocess.Popen):
        try:
            yield server
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()

    return ended
