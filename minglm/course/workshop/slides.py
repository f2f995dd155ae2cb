"""`minglm workshop slides`: notebooks as slides, each in one HTML file that opens without a network.

nbconvert's own slide template loads reveal.js from the net. Here the executed notebook is cut at its headings, one
slide each, and a few lines of script move between them; arrow keys, space, and printing (one slide a page) work.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from minglm import atomic, datafiles
from minglm.course import assets
from minglm.course.workshop import generator
from minglm.errors import InputError

DEFAULT = (
    "learn/00_start_here",
    "learn/01_tokens_and_data",
    "learn/02_mla",
    "learn/03_lightning_indexer",
    "learn/04_mixture_of_experts",
    "learn/05_train_it",
    "scale/04_a_hundred_thousand_chips",
)  # the half day
TALL = 900  # pixels that a slide may hold before a new one begins
CODE, PRINTED = 13, 14  # lines of code and of printed text in sight; the rest scrolls
DRAWING = 7  # lines of code in sight above a picture, which people came to see


def executed(notebook: Path) -> Path:
    """The same notebook with its outputs, from the book built last.

    Raises:
        InputError: that book does not hold it.
    """
    run = datafiles.runs("book") / "_build" / "jupyter_execute" / notebook.parent.name / notebook.name
    if not run.is_file():
        raise InputError(f"{run}: the book does not hold it; run `make book`, or leave --book out")
    return run


def export(notebooks: list[Path], folder: Path | None = None, execute: bool = True) -> list[Path]:
    """Write one HTML file for each notebook; runs them in smoke mode first, so that pictures are there.

    Args:
        execute: False takes the outputs that the notebooks have.

    Raises:
        InputError: a notebook that is not there, is none, or stops.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    chosen = notebooks or [datafiles.notebooks(f"{name}.ipynb") for name in DEFAULT]
    folder = folder or datafiles.runs("workshop", "slides")
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for path in chosen:
        if not path.is_file():
            raise InputError(f"{path}: no such notebook; give a path such as notebooks/learn/02_mla.ipynb")
        try:
            book = nbformat.read(generator.runnable(path), as_version=4)
            nbformat.validate(book)
        except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, AttributeError, KeyError):
            raise InputError(f"{path}: not a notebook; give a .ipynb file") from None
        with tempfile.TemporaryDirectory() as scratch:
            if execute:
                os.environ.update(MINGLM_SMOKE="1", MINGLM_RUNS=str(Path(scratch) / "runs"))
                client = NotebookClient(
                    book,
                    timeout=600,
                    kernel_name="python3",
                    store_widget_state=False,
                    resources={"metadata": {"path": scratch}},
                )
                try:
                    client.execute()
                except CellExecutionError as err:
                    raise InputError(
                        f"{path}: a cell stops with {err.ename}: {err.evalue[:200]}; mend it first"
                    ) from None
        target = folder / f"{path.stem}.slides.html"
        atomic.write_text(target, page(book))
        out.append(target)
    return out


def _parts(cells):
    """The cells, with text cut at the headings inside it, and a code cell cut before each further picture."""
    for cell in cells:
        if cell.cell_type != "code":
            for text in re.split(r"\n(?=#{1,3} )", cell.source):
                yield _part(cell, source=text)
            continue
        pieces: list[list[Any]] = [[]]
        for output in cell.get("outputs", ()):
            if _drawn(output) and any(map(_drawn, pieces[-1])):
                pieces.append([])
            pieces[-1].append(output)
        yield _part(cell, outputs=_tidy(pieces[0]))
        for more in pieces[1:]:
            yield _part(cell, source="", outputs=_tidy(more), metadata={"transient": {"remove_source": True}})


def _part(cell, **changes):
    part = cell.copy()
    part.update(changes)
    return part


def _tidy(outputs: list) -> list:
    """Printed lines as one piece, so that it can scroll, and no slider: it has no kernel here."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1]["text"] += output["text"]
        elif "application/vnd.jupyter.widget-view+json" not in output.get("data", {}):
            kept.append(output.copy())
    return kept


def _drawn(output) -> bool:
    data = output.get("data", {})
    return (
        "application/vnd.plotly.v1+json" in data
        or "image/svg+xml" in data
        or "<svg" in "".join(data.get("text/html", ""))
    )


def _pictures(cell) -> bool:
    return any(map(_drawn, cell.get("outputs", ())))


def _height(cell) -> int:
    """About how many pixels a cell takes on a slide."""
    if cell.cell_type == "markdown":
        seen = re.sub(r"(</summary>).*?(</details>)", r"\1\2", cell.source, flags=re.S)  # what is folded takes no room
        return 12 + sum(26 * -(-len(line) // 110) for line in seen.splitlines())
    printed = sum(str(o.get("text", "")).count("\n") for o in cell.get("outputs", ()) if o.output_type == "stream")
    return (
        20
        + 19 * (min(DRAWING if _pictures(cell) else CODE, cell.source.count("\n") + 1) + min(PRINTED, printed))
        + 430 * _pictures(cell)
    )


def page(book) -> str:
    """The executed notebook as one self-contained page of slides.

    A new one begins at every heading and every further picture, and where a slide would become too tall to be seen
    whole.
    """
    from nbconvert import HTMLExporter

    deck: list[list[Any]] = []
    current: list[Any] = []
    for cell in _parts(book.cells):
        heading = cell.cell_type == "markdown" and re.match(r"#{1,3} ", cell.source)
        tall = sum(map(_height, [*current, cell])) > TALL
        if current and (heading or tall or (_pictures(cell) and any(_pictures(shown) for shown in current))):
            deck.append(current)
            current = []
        current.append(cell)
    deck.append(current)
    exporter = HTMLExporter(template_name="lab")
    exporter.mathjax_url = exporter.require_js_url = exporter.mermaid_js_url = exporter.jquery_url = ""
    bodies, head = [], ""
    for number, cells in enumerate(deck):
        part = book.copy()
        part["cells"], part["metadata"] = cells, {k: v for k, v in book.metadata.items() if k != "widgets"}
        text, _ = exporter.from_notebook_node(part)
        if not number:
            head = text[: text.index("<body")]
        inner = text[text.index("<body") : text.rindex("</body>")]
        bodies.append(f'<section class="slide">{inner[inner.index(">") + 1 :]}</section>')
    head = re.sub(r'<script[^>]*src="[^"]*"[^>]*></script>', "", head)
    body = re.sub(r'<script[^>]*src="http[^"]*"[^>]*></script>', "", "".join(bodies))
    return (
        f"{head}<style>\n{assets.read('slides.css')}</style><body>{body}<div id='place'></div>"
        f"<script>\n{assets.read('slides.js')}</script></body></html>"
    )
