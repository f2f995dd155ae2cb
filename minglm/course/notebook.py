"""What every notebook needs in its first cell, so that no set-up code is copied from notebook to notebook.

    from minglm.course.notebook import pick, runs, show

`MINGLM_SMOKE=1` (set by the tests) asks for the short version: `pick(full, smoke)` returns the second value there.
"""

from __future__ import annotations

import os
from pathlib import Path

from minglm import datafiles
from minglm.plots import label_log_axes

SMOKE = os.environ.get("MINGLM_SMOKE") == "1"


def pick(full, smoke):
    """`full` for a reader, `smoke` when the notebook only has to prove that it runs."""
    return smoke if SMOKE else full


def show(fig, alt: str):
    """Display a Plotly figure, or a picture in HTML, with a text alternative below it, in JupyterLab and in exported
    HTML alike.

    Plotly's default renderer leaves exported HTML without any plot and without an error, so the renderer is named here.
    """
    from IPython.display import HTML, Markdown, display

    words = alt.replace("$", "\\$")  # else Jupyter typesets what stands between two dollars
    if isinstance(fig, str):
        display(HTML(fig), Markdown(f"*{words}*"))
        return
    import plotly.io

    if (
        plotly.io.renderers.default != "plotly_mimetype+notebook"
    ):  # setting it again would store plotly.js again, 4.8 MB
        plotly.io.renderers.default = "plotly_mimetype+notebook"
    label_log_axes(fig)
    fig.show(config={"displaylogo": False, "responsive": True})
    display(Markdown(f"*{words}*"))


def runs(name: str) -> Path:
    """The folder `runs/<name>` for what this notebook trains, beside the repository's own runs; smoke runs go apart."""
    folder = datafiles.runs(f"smoke-{name}" if SMOKE else name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
