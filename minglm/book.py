"""`make book`: an HTML book of all notebooks, executed in smoke mode or in full, that opens without a network.

    python -m minglm.book            # executes every notebook (full length), writes runs/book/_build/html
    MINGLM_SMOKE=1 python -m minglm.book

Needs the `dev` extra (jupyter-book 1; version 2 fetches a template from the net at build time).
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"learn": "Learn: build it", "scale": "Scale: simulate it", "plan": "Plan: decide with it"}

CONFIG = """title: minglm
author: the minglm authors
execute: {execute_notebooks: force, timeout: 1800, run_in_temp: true}
only_build_toc_files: true
html: {use_issues_button: false, use_repository_button: false}
sphinx:
  config:
    html_js_files: []
    mathjax_path: ""
    thebe_config: false
    language: en
"""


def build(target: Path = ROOT / "runs" / "book") -> Path:
    """Copy the notebooks, write the table of contents, run jupyter-book; returns the path of index.html."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    toc = ["format: jb-book", "root: intro", "parts:"]
    for folder, caption in PARTS.items():
        notebooks = sorted((ROOT / "notebooks" / folder).glob("*.ipynb"))
        if notebooks:
            (target / folder).mkdir()
            toc += [f"- caption: '{caption}'", "  chapters:"]
            for path in notebooks:
                shutil.copy(path, target / folder / path.name)
                toc.append(f"  - file: {folder}/{path.stem}")
    (target / "_toc.yml").write_text("\n".join(toc) + "\n", encoding="utf-8")
    (target / "_config.yml").write_text(CONFIG, encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figures = ROOT / "data" / "figures"
    if figures.is_dir():
        shutil.copytree(figures, target / "data" / "figures")
    (target / "intro.md").write_text(readme, encoding="utf-8")
    env = {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype+notebook", "MINGLM_RUNS": str(target / "runs")}
    subprocess.run([sys.executable, "-m", "jupyter_book", "build", str(target), "--quiet"], check=True, env=env)
    index = target / "_build" / "html" / "index.html"
    print(f"the book: {index}")
    return index


if __name__ == "__main__":
    build()
