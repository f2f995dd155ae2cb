"""`make book`: an HTML book of all notebooks, executed in smoke mode or in full, that opens without a network.

    python -m minglm.course.book            # executes every notebook (full length), writes runs/book/_build/html
    MINGLM_SMOKE=1 python -m minglm.course.book
    python -m minglm.course.book --record data/reference/last_runs   # the same, with course_check.csv for the record
    python -m minglm.course.book --check    # looks at a built book: figures, links, search, nothing from the net

Executed copies are kept in runs/book-executed: killed and called again, it goes on with the next notebook.

Needs the `dev` extra (jupyter-book 1; version 2 fetches a template from the net at build time). Every page prints: the
style sheet shows pictures whole and hides the sidebars.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from minglm import atomic, datafiles
from minglm.course import assets, book_reference, executed
from minglm.course.workshop import generator, timing
from minglm.errors import InputError, Parser
from minglm.runtime import run_folder

PARTS = {"learn": "Learn: build it", "scale": "Scale: simulate it", "plan": "Plan: decide with it"}
SHEETS = "Workshop: exercises"


def build(target: Path | None = None, only: str | None = None) -> Path:
    """Execute the notebooks, write the table of contents, run jupyter-book; returns the path of index.html.

    A notebook in which a cell stops has its page too; `check` names it.

    Args:
        only: build a book of the notebooks whose path holds this word, or of the reference alone with "docs" (for
            trying out).
    """
    root = datafiles.root()
    if root is None:
        raise InputError(
            "the book is made from the repository's README and notebooks; run from a clone of the repository"
        )
    target = target or datafiles.runs("book")
    with run_folder.writing(copies(target), "executed", "make book"):
        rows = executed.run([p for p in timing.notebooks() if _wanted(p, only)], copies(target))
    run_folder.set_aside(target, "book")
    with run_folder.writing(target, "book", "make book"):
        return _build(target, only, root, rows)


def copies(target: Path) -> Path:
    """Where the executed notebooks of a book are kept: beside it, since a book is made anew each time."""
    return target.with_name(f"{target.name}-executed")


def _wanted(notebook: Path, only: str | None) -> bool:
    return only is None or only in datafiles.shown(notebook)


def _build(target: Path, only: str | None, root: Path, rows: list[dict]) -> Path:
    toc = ["format: jb-book", "root: intro", "parts:"]
    for folder, caption in PARTS.items():
        notebooks = [p for p in sorted(datafiles.notebooks(folder).glob("*.ipynb")) if _wanted(p, only)]
        if notebooks:
            (target / folder).mkdir()
            toc += [f"- caption: '{caption}'", "  chapters:"]
            for path in notebooks:
                # where the learner has to fill something in, the page shows the blanks, not the solution that was run
                shown = path if generator.is_blank(path) else copies(target) / folder / path.name
                atomic.copy(shown, target / folder / path.name)
                toc.append(f"  - file: {folder}/{path.stem}")
    exercises = datafiles.notebooks("workshop", "exercises")
    sheets = [p for p in sorted(exercises.glob("*.ipynb")) if _wanted(p, only)]
    if sheets:
        (target / "workshop" / "exercises").mkdir(parents=True)
        toc += [f"- caption: '{SHEETS}'", "  chapters:"]
        for path in sheets:
            atomic.copy(path, target / "workshop" / "exercises" / path.name)
            toc.append(f"  - file: workshop/exercises/{path.stem}")
    if only is None or only == "docs":
        toc += book_reference.write(target, root)
    atomic.write_text(target / "_toc.yml", "\n".join(toc) + "\n")
    atomic.write_text(target / "_config.yml", assets.read("book.yaml"))
    (target / "_static").mkdir()
    # No page has formulas that need MathJax, and its default comes from the net: an empty script stands in.
    atomic.write_text(target / "_static" / "no_mathjax.js", "")
    atomic.write_text(target / "_static" / "print.css", assets.read("print.css"))
    figures = datafiles.data("figures")
    if figures.is_dir():
        shutil.copytree(figures, target / "data" / "figures")
    atomic.write_text(target / "intro.md", _intro((root / "README.md").read_text(encoding="utf-8"), target))
    # the package has no __main__, and Scripts may not be on the path
    run = "from jupyter_book.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", run, "build", str(target), "--quiet"], check=True)
    atomic.write_json(target / "seconds.json", rows)
    index = target / "_build" / "html" / "index.html"
    _cut_off(index.parent)
    print(f"the book: {index}")
    return index


def _cut_off(html: Path) -> None:
    """Take out of every page what the theme would load from elsewhere; nothing here needs it."""
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        # (the live-code button's settings name such an address, and stand twice in a page, which is a script error)
        kept = re.sub(
            r"<script>const THEBE_JS_URL.*?</script>|<script[^>]*sphinx-thebe\.js[^>]*></script>"
            r'|<script[^>]*src="(https?:)?//[^"]*"[^>]*>\s*</script>|<link[^>]*href="(https?:)?//[^"]*"[^>]*>',
            "",
            text,
        )
        if kept != text:
            atomic.write_text(page, kept)


def _intro(readme: str, target: Path) -> str:
    """The README as first page: links to notebooks lead to their pages, those to files outside the book become plain
    words.
    """

    def kept(link: re.Match) -> str:
        words, path = link[1], link[2].removeprefix("notebooks/")
        return f"[{words}]({path})" if re.match(r"https?://", path) or (target / path).is_file() else words

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)\)", kept, readme)


def check(target: Path | None = None) -> list[str]:
    """What is wrong with a built book, one line each; an empty list means that nothing is.

    Looked at: every figure is there, links lead somewhere, the search knows words, nothing is loaded from elsewhere.

    Raises:
        InputError: no book there.
    """
    target = target or datafiles.runs("book")
    html = target / "_build" / "html"
    if not (html / "index.html").is_file():
        raise InputError(f"{html}: no book there; `make book` builds one")
    noted = json.loads((target / "seconds.json").read_text(encoding="utf-8"))
    wrong = [f"{row['notebook']}: {row['error']}" for row in noted if row["error"]]
    for name in re.findall(r"- file: (\S+)", (target / "_toc.yml").read_text(encoding="utf-8")):
        wrong += _faults_of_chapter(target, html, name)
    for page in html.rglob("*.html"):
        if not page.is_relative_to(html / "_static"):  # the theme's own templates
            wrong += _faults_of_page(html, page)
    index = html / "searchindex.js"
    words = index.read_text(encoding="utf-8") if index.is_file() else ""
    if not all(f'"{word}"' in words or f"{word}:" in words for word in ("expert", "token")):
        wrong.append("search: the index lacks words of the notebooks")
    return wrong


def _faults_of_chapter(target: Path, html: Path, name: str) -> list[str]:
    """Figures, tables and errors of one notebook's page."""
    page = html / f"{name}.html"
    if not page.is_file():
        return [f"{name}: no page"]
    if not (target / f"{name}.ipynb").is_file():  # a page of the reference
        return []
    wrong, text = [], page.read_text(encoding="utf-8")
    cells = json.loads((target / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    wanted = sum(len(re.findall(r"^\s*show\(", source, flags=re.M)) for source in code)
    plots, others = _pictures(cells)
    drawn = len(re.findall(r"Plotly\.newPlot\(", text))
    # blanks are not executed
    if not name.startswith(("workshop/", "learn/build_")) and (drawn < plots or drawn + others < wanted):
        wrong.append(f"{name}: {wanted} figures asked for, {drawn + others} in the page")
    if re.search(r"<p>\s*\|[^<]*\|", text):
        wrong.append(f"{name}: a table shown as plain text")
    if "Traceback" in text:
        wrong.append(f"{name}: an error in an output")
    return wrong


def _pictures(cells: list[dict]) -> tuple[int, int]:
    """Plots and other pictures (`show` of a string of HTML) in the outputs of an executed notebook."""
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    plots = sum("application/vnd.plotly.v1+json" in data for data in shown)
    return plots, sum(set(data) == {"text/html", "text/plain"} for data in shown)


def _faults_of_page(html: Path, page: Path) -> list[str]:
    """What a page loads and where its links lead; links only where the text is ours."""
    wrong, text, name = [], page.read_text(encoding="utf-8"), page.relative_to(html).as_posix()
    for tag, style in re.findall(
        r'<(?:script|img|iframe)[^>]+src="([^"]+)"|<link[^>]+rel="stylesheet"[^>]*href="([^"]+)"', text
    ):
        source = tag or style
        if re.match(r"(https?:)?//", source):
            wrong.append(f"{name}: loads {source}")
        elif not source.startswith("data:") and not (page.parent / unquote(source.split("?")[0])).exists():
            wrong.append(f"{name}: {source} is missing")
    if name.split("/")[0] in (*PARTS, "workshop", "intro.html"):
        article = text[text.find("<article") : text.rfind("</article>")]
        article = re.sub(r"<script.*?</script>", "", article, flags=re.S)
        for link in re.findall(r'<a [^>]*href="([^"#?]+)[^"]*"', article):
            if not re.match(r"(https?:)?//|mailto:", link) and not (page.parent / unquote(link)).exists():
                wrong.append(f"{name}: link to {link} leads nowhere")
    return wrong


def record(rows: list[dict], folder: Path) -> Path:
    """Write course_check.csv: a row per notebook with notebook, date, seconds and error, empty where every cell ran."""
    path = folder / "course_check.csv"
    columns = ("notebook", "date", "seconds", "error")
    atomic.write_csv(path, [{c: row[c] for c in columns} for row in rows], columns)
    return path


def main(argv: list[str] | None = None) -> int:
    """Build the book unless `--check`, then look it over; exit code 1 where something is wrong."""
    p = Parser(prog="python -m minglm.course.book", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--check", action="store_true", help="look at the book that is there, build none")
    p.add_argument("--record", type=Path, metavar="FOLDER", help="write course_check.csv there")
    args = p.parse_args(argv)
    if not args.check:
        build()
    problems = check()
    if args.record:
        print(record(json.loads((datafiles.runs("book") / "seconds.json").read_text(encoding="utf-8")), args.record))
    whole = "every notebook and figure present, no broken link, search filled, nothing loaded from elsewhere"
    print("\n".join(problems) if problems else whole)
    return 1 if problems else 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
