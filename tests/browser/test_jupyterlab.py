"""A learner's first minutes in a real JupyterLab: open a notebook, run all cells, see a plot, move a slider.

`make test` walks through one notebook; MINGLM_COURSE=1 adds two more.

Needs Chromium and Playwright (extra `dev`). The page may talk to its own server only: a classroom has no network.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("jupyterlab", reason="JupyterLab is missing: pip install -e '.[lab]'")
pytest.importorskip("torch", reason="torch is missing: pip install -e '.[train]'")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "02_mla.ipynb"


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory, ending):
    """A JupyterLab server on a free port with its own settings; yields (address, token)."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(
        ROOT / "notebooks" / "learn", home / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    env = {
        **os.environ,
        "MINGLM_SMOKE": "1",
        "MINGLM_RUNS": str(home / "runs"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    address = f"http://127.0.0.1:{port}"
    with (
        open(home / "lab.log", "w") as log,
        ending(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "jupyterlab",
                    "--no-browser",
                    "--ip=127.0.0.1",
                    f"--port={port}",
                    "--ServerApp.port_retries=0",
                    f"--IdentityProvider.token={token}",
                    f"--ServerApp.root_dir={home / 'notebooks'}",
                    "--expose-app-in-browser",
                    "--allow-root",
                    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                ],
                env=env,
                stdout=log,
                stderr=log,
            )
        ) as server,
    ):
        _wait_for(f"{address}/api/status?token={token}", server, home / "lab.log")
        yield address, token


def _wait_for(url: str, server, log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not answer within {seconds:.0f} s: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page(new_page, lab):
    """The notebook, opened and run to the end."""
    page = new_page(1300, 900)
    _open_and_run(page, *lab, NOTEBOOK)
    return page


def _open_and_run(page, address: str, token: str, notebook: str) -> None:
    page.goto(f"{address}/lab/tree/{notebook}?token={token}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
    )
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


def _cells(page) -> list[dict]:
    """Code cells of the notebook's model: execution count and any error."""
    return page.evaluate("""() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
        .filter(c => c.type === 'code').map(c => { const cell = c.toJSON();
        const errors = cell.outputs.filter(o => o.output_type === 'error');
        return {count: cell.execution_count, error: errors.map(o => o.evalue).join()}; })""")


def _scroll_to(page, selector: str):
    """Wheel down like a reader until the first match is on screen: JupyterLab draws only what is near the view."""
    page.mouse.move(700, 450)
    page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer')?.scrollTo(0, 0)")
    for _ in range(80):
        found = page.locator(selector).first
        if found.count() and found.is_visible():
            found.scroll_into_view_if_needed()
            return found
        page.mouse.wheel(0, 350)
        page.wait_for_timeout(100)
    raise AssertionError(f"{selector} never came into view")


def test_all_cells_run_without_error(page):
    _wait_until_run(page)


def _wait_until_run(page) -> None:
    deadline = time.monotonic() + 240
    while not (done := all(c["count"] for c in _cells(page))) and time.monotonic() < deadline:
        assert not any(c["error"] for c in _cells(page)), [c["error"] for c in _cells(page) if c["error"]]
        time.sleep(0.5)
    assert done, _cells(page)
    assert not any(c["error"] for c in _cells(page))


def test_a_plot_is_drawn(page):
    plot = _scroll_to(page, ".jp-OutputArea .js-plotly-plot .main-svg")
    box = plot.bounding_box()
    assert box["width"] > 300 and box["height"] > 150
    bars = page.locator(".js-plotly-plot").first.locator(".barlayer .point").count()
    assert bars == 4, f"the cache chart has four bars, drawn are {bars}"


def test_a_moved_slider_changes_picture_and_sentence(page):
    _scroll_to(page, ".widget-slider .noUi-handle")
    _wait_for_slider(page, "32,768")
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    _wait_for_slider(page, "65,536")


def _wait_for_slider(page, tokens: str) -> None:
    """Until both the sentence and the drawn title speak of so many tokens."""
    for selector in (".minglm-says", ".jupyter-widgets .gtitle"):
        page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)",
            arg=[selector, tokens],
        )


@pytest.mark.skipif(os.environ.get("MINGLM_COURSE") != "1", reason="walked by make course-check (MINGLM_COURSE=1)")
@pytest.mark.parametrize("notebook", ["04_mixture_of_experts.ipynb", "07_muon.ipynb"])
def test_another_notebook_runs_and_its_slider_changes_the_picture(page, lab, notebook, tmp_path):
    _open_and_run(page, *lab, notebook)
    _wait_until_run(page)
    handle = _scroll_to(page, ".widget-slider .noUi-handle")
    page.wait_for_selector(".minglm-says")
    page.wait_for_selector(".jupyter-widgets .gtitle")
    before = [page.locator(s).first.text_content() for s in (".minglm-says", ".jupyter-widgets .gtitle")]
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_function(
        "([a, b]) => document.querySelector('.minglm-says').textContent !== a && "
        "document.querySelector('.jupyter-widgets .gtitle').textContent !== b",
        arg=before,
    )
    if folder := os.environ.get("MINGLM_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{notebook}.png")
    assert page.elsewhere == []


def test_nothing_was_asked_of_the_network(page):
    assert page.elsewhere == []
