"""The planner page in a real browser with two cores kept busy: the first picture, and a moved control's first look.

Needs Chromium and Playwright. Where more of the machine is taken, `load_before` says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minglm.errors import InputError
from minglm.tools.bench_summary import answer

NAME = "page"
ROOT = Path(__file__).resolve().parents[2]
LOADS = 3  # after the one of a server that has just started
REST_S = 20  # between loads, as between people: the server builds the next page meanwhile
MOVES = (
    ("How many chips", ("19,000", "17,000", "12,000", "24,000", "16,000")),
    ("Batch, tokens", ("15M", "18M", "24M", "32M", "48M")),
    ("Rent of a chip", ("2.10", "3.10", "4.10", "1.60", "2.60")),
)
PICTURE = ".bars .bar b"
# Seconds from the pressed key to the next frame after the sentence has changed, timed in the page itself.
TIMED = """() => {
  const said = () => document.querySelector('.planner-top').innerText;
  window.waited = null;
  document.addEventListener('keydown', pressed => {
    if (pressed.key != 'Enter') return;
    const before = said(), start = performance.now();
    window.waited = null;
    const seen = new MutationObserver(() => { if (said() != before) {
      seen.disconnect(); requestAnimationFrame(() => { window.waited = (performance.now() - start) / 1000; }); } });
    seen.observe(document.body, {subtree: true, childList: true, characterData: true});
  }, true);
}"""


def run() -> list[dict]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise InputError("Playwright is missing: pip install -e '.[dev]'") from None
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise InputError("no Chromium or Chrome found: install one (Debian: apt install chromium)")
    with sync_playwright() as p, _busy(2), _served() as (address, started_s):
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            return _measured(browser, address, started_s)
        finally:
            browser.close()


def _measured(browser: Any, address: str, started_s: float) -> list[dict]:
    loads, looks = [], []
    for i in range(1 + LOADS):
        time.sleep(REST_S * bool(i))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(address, timeout=240_000, wait_until="commit")
        page.wait_for_selector(PICTURE, state="attached", timeout=240_000)
        loads.append(time.perf_counter() - start)
        if i < LOADS:
            page.close()
    page.evaluate(TIMED)
    for label, texts in MOVES:
        for text in texts:
            box = page.get_by_label(label, exact=False).first
            box.fill(text)
            box.press("Enter")
            page.wait_for_function("() => window.waited !== null", timeout=60_000)
            looks.append(page.evaluate("() => window.waited"))
            page.wait_for_function(
                "() => !document.querySelector('.planner-top').innerText.includes('first look')", timeout=120_000
            )
    first, *opened = loads
    server = {"ratio": None, "target": None, "met": None, "unit": "s"}
    just = {"name": "first picture of a server that has just started, two cores busy", "value": first}
    return [
        server
        | {"name": "from the command to the address of a page that is built, two cores busy", "value": started_s},
        server | just | {"target": "at most 5 s", "met": first <= 5.0},
        _row("first picture of the planner page", "page: first picture, two cores busy", opened, 5.0),
        _row("a control moved, its first look shown", "page: a control's answer, two cores busy", looks, 0.5),
    ]


def _row(name: str, work: str, seconds: list[float], most: float) -> dict:
    median = statistics.median(seconds)
    row = {
        "name": f"{name}, two cores busy, median of {len(seconds)}, worst {max(seconds):.2f} s",
        "value": median,
        "unit": "s",
        "ratio": None,
        "target": f"at most {most:g} s",
        "met": median <= most,
    }
    return row | answer(work, median, seconds)


@contextlib.contextmanager
def _busy(cores: int) -> Iterator[None]:
    """Processes that do nothing but keep cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


@contextlib.contextmanager
def _served() -> Iterator[tuple[str, float]]:
    """The page's address, and the seconds from the command until it was told; the server ends with the block."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-m", "sim", "dashboard", "--json", "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "MINGLM_RUNS": place},
        )
        try:
            if not select.select([server.stdout], [], [], 180)[0]:
                raise InputError("clustersim dashboard did not start within three minutes")
            said = json.loads(server.stdout.readline())  # type: ignore[union-attr]
            yield said["address"], time.perf_counter() - start
        finally:
            server.terminate()
            server.wait(20)
