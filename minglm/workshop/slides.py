"""`minglm workshop slides`: notebooks as slides, each in one HTML file that opens without a network.

nbconvert's own slide template loads reveal.js from the net. Here the executed notebook is cut at its headings, one slide
each, and a few lines of script move between them; arrow keys, space, and printing (one slide a page) work.
"""
from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from minglm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "runs" / "workshop" / "slides"
DEFAULT = ("learn/00_start_here", "learn/01_tokens_and_data", "learn/02_mla", "learn/03_lightning_indexer", "learn/04_mixture_of_experts",
           "learn/05_train_it", "scale/04_a_hundred_thousand_chips")                    # the half day
STYLE = """<style>
.slide{display:none;min-height:92vh;max-width:1100px;margin:0 auto;padding:1rem 2rem;font-size:1.25rem;box-sizing:border-box}
.slide.now{display:block} .slide .jp-Cell{max-width:100%} #place{position:fixed;right:1rem;bottom:.5rem;color:#555;font:14px sans-serif}
@media print{.slide{display:block;page-break-after:always} #place{display:none}}
</style>"""
SCRIPT = """<script>
const slides=[...document.querySelectorAll('.slide')];let now=Math.min(Math.max(+location.hash.slice(1)||1,1),slides.length)-1;
function show(n){now=Math.min(Math.max(n,0),slides.length-1);slides.forEach((s,i)=>s.classList.toggle('now',i===now));
document.getElementById('place').textContent=(now+1)+' / '+slides.length;history.replaceState(null,'','#'+(now+1));window.dispatchEvent(new Event('resize'));}
document.addEventListener('keydown',e=>{if(['ArrowRight','PageDown',' '].includes(e.key)){show(now+1);e.preventDefault()}
if(['ArrowLeft','PageUp'].includes(e.key)){show(now-1);e.preventDefault()} if(e.key==='Home')show(0);if(e.key==='End')show(slides.length-1)});
show(now);</script>"""


def executed(notebook: Path) -> Path:
    """The same notebook with its outputs, from the book built last.

    Raises:
        InputError: that book does not hold it.
    """
    from minglm import book

    found = book.TARGET / "_build" / "jupyter_execute" / notebook.parent.name / notebook.name
    if not found.is_file():
        raise InputError(f"{found}: the book does not hold it; run `make book`, or leave --book out")
    return found


def export(notebooks: list[Path], folder: Path = FOLDER, execute: bool = True) -> list[Path]:
    """Write one HTML file for each notebook; runs them in smoke mode first, so that pictures are there.

    Args:
        execute: False takes the outputs that the notebooks have.

    Raises:
        InputError: a notebook that is not there.
    """
    import nbformat
    from nbclient import NotebookClient

    chosen = notebooks or [ROOT / "notebooks" / f"{name}.ipynb" for name in DEFAULT]
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for path in chosen:
        if not path.is_file():
            raise InputError(f"{path}: no such notebook; give a path such as notebooks/learn/02_mla.ipynb")
        book = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as scratch:
            if execute:
                os.environ.update(MINGLM_SMOKE="1", MINGLM_RUNS=str(Path(scratch) / "runs"))
                NotebookClient(book, timeout=600, kernel_name="python3", store_widget_state=False,
                               resources={"metadata": {"path": scratch}}).execute()
        target = folder / f"{path.stem}.slides.html"
        target.write_text(page(book), encoding="utf-8")
        out.append(target)
    return out


def _parts(cells):
    """The cells, with text cut at the headings inside it."""
    for cell in cells:
        texts = re.split(r"\n(?=#{1,3} )", cell.source) if cell.cell_type == "markdown" else [cell.source]
        for text in texts:
            part = cell.copy()
            part["source"] = text
            yield part


def _pictures(cell) -> bool:
    return any("application/vnd.plotly.v1+json" in o.get("data", {}) for o in cell.get("outputs", ()))


def page(book) -> str:
    """The executed notebook as one self-contained page of slides; a new one begins at every heading and every further picture."""
    from nbconvert import HTMLExporter

    deck, current = [], []
    for cell in _parts(book.cells):
        heading = cell.cell_type == "markdown" and re.match(r"#{1,3} ", cell.source)
        if current and (heading or _pictures(cell) and any(map(_pictures, current))):
            deck.append(current)
            current = []
        current.append(cell)
    deck.append(current)
    exporter = HTMLExporter(template_name="lab")
    exporter.mathjax_url = exporter.require_js_url = exporter.mermaid_js_url = exporter.jquery_url = ""
    bodies, head = [], ""
    for number, cells in enumerate(deck):
        part = book.copy()
        part["cells"] = cells
        text, _ = exporter.from_notebook_node(part)
        if not number:
            head = text[:text.index("<body")]
        inner = text[text.index("<body"):text.rindex("</body>")]
        bodies.append(f'<section class="slide">{inner[inner.index(">") + 1:]}</section>')
    head = re.sub(r'<script[^>]*src="[^"]*"[^>]*></script>', "", head)
    body = re.sub(r'<script[^>]*src="http[^"]*"[^>]*></script>', "", "".join(bodies))
    return f"{head}{STYLE}<body>{body}<div id='place'></div>{SCRIPT}</body></html>"
