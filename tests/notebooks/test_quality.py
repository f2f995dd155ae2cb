"""What a reader notices: spelling, links that lead somewhere, pictures with words, code that runs on Windows and macOS
too."""

import ast
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
COURSE = [p for p in NOTEBOOKS if "workshop" not in p.parts]
PAGES = sorted((ROOT / "notebooks").rglob("*.md"))
IDS = [p.relative_to(ROOT / "notebooks").as_posix() for p in NOTEBOOKS]


def _cells(path: Path, kind: str) -> list[str]:
    return [
        "".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind
    ]


def _prose(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n\n".join(_cells(path, "markdown"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_headings_are_in_order_and_outputs_are_stripped(path):
    text = re.sub(r"```.*?```", "", _prose(path), flags=re.S)
    levels = [len(m) for m in re.findall(r"^(#{1,6}) ", text, flags=re.M)]
    assert levels and levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix())
def test_links_lead_to_files_and_images_have_words(path):
    text = re.sub(r"```.*?```", "", _prose(path), flags=re.S)
    for alt, target in re.findall(r"(?<!\\)!\[([^\]]*)\]\(([^)\s]+)", text):
        assert len(alt.split()) >= 3, f"image {target}: say in words what it shows"
    assert not re.findall(r"<img(?![^>]*\balt=)", text), "an image without alt text"
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"link to {target}: no such file"
        assert not anchor or anchor.lower() in _anchors(file), f"link to {target}: no such heading"


def _anchors(file: Path) -> set[str]:
    """Of every heading of a page or notebook, by the code host's rule, which JupyterLab shares but for case."""
    text = _prose(file) if file.suffix == ".ipynb" else file.read_text(encoding="utf-8")
    titles = re.findall(r"^#{1,6} (.+)$", text, flags=re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\]\([^)]*\)", "", t).strip().lower()).replace(" ", "-") for t in titles
    }


def test_an_anchor_that_no_heading_has_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("## What is `2x` worth?\n", encoding="utf-8")
    assert _anchors(page) == {"what-is-2x-worth"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_code_fits_a_notebooks_cell(path):
    """88 characters: what a page of the book and a slide show without a scroll bar."""
    lines = [line for code in _cells(path, "code") for line in code.splitlines()]
    assert not [line for line in lines if len(line) > 88]


def _long_axis_titles(code: str) -> list[str]:
    """Titles of vertical axes, written out in a call of `figure` or `heatmap`, that such a picture has no room for."""
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and len(n.args) > 2]
    named = [n for n in calls if (getattr(n.func, "id", "") or getattr(n.func, "attr", "")) in ("figure", "heatmap")]
    titles = [n.args[2].value for n in named if isinstance(n.args[2], ast.Constant)]
    return [title for title in titles if isinstance(title, str) and len(title) > 35]


@pytest.mark.parametrize("path", COURSE, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix())
def test_the_title_of_a_vertical_axis_fits_the_picture(path):
    assert [t for cell in _cells(path, "code") for t in _long_axis_titles(cell)] == []


def test_a_long_title_of_an_axis_is_seen():
    assert _long_axis_titles(f"figure('a', 'b', '{'c' * 36}')") == ["c" * 36]


@pytest.mark.parametrize("path", COURSE, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix())
def test_every_picture_says_in_words_what_it_shows(path):
    shown = 0
    for code in _cells(path, "code"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("show", "show_svg"):
                shown += 1
                if any(isinstance(a, ast.Starred) for a in node.args):
                    continue  # a function that gives picture and words together
                words = (
                    node.args[1]
                    if len(node.args) > 1
                    else next((k.value for k in node.keywords if k.arg == "alt"), None)
                )
                assert words is not None, f"{ast.unparse(node)[:60]}: give the text alternative"
                text = "".join(
                    n.value for n in ast.walk(words) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                )
                assert len(text) >= 15 or not isinstance(words, (ast.Constant, ast.JoinedStr)), (
                    f"{text!r}: say more than that"
                )
    assert shown, "a notebook without a picture"


@pytest.mark.parametrize("path", COURSE, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix())
def test_a_slider_has_a_picture_beside_it_that_does_not_move(path):
    """A printed page must teach what the slider teaches: some static picture stands within three code cells of it."""
    cells = _cells(path, "code")
    for i, code in enumerate(cells):
        if re.search(r"^(slider\(|display\(teaching\.live\()", code, flags=re.M):
            around = cells[max(0, i - 3) : i + 4]
            assert any(re.search(r"^\s*show\(", c, flags=re.M) for c in around), f"code cell {i + 1}: a slider alone"


def test_spelling():
    """codespell's list of common misspellings; words that are right here are named."""
    codespell = pytest.importorskip("codespell_lib", reason="codespell is missing: pip install codespell")
    files = [
        str(p)
        for p in [
            *NOTEBOOKS,
            *PAGES,
            ROOT / "README.md",
            ROOT / "CONTRIBUTING.md",
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / "minglm" / "course").rglob("*.py"),
        ]
    ]
    assert codespell.main("--ignore-words-list=thn,ths,fro,simpy,tolen,cann,ines,notin", *files) == 0


def test_the_spelling_check_can_fail(tmp_path):
    codespell = pytest.importorskip("codespell_lib", reason="codespell is missing: pip install codespell")
    (tmp_path / "a.md").write_text("This is recieved wih a mispelling.\n")
    assert codespell.main(str(tmp_path / "a.md")) > 0


def test_code_and_notebooks_pass_the_linter():
    """ruff with the rules of pyproject.toml: unused imports, names that nothing defines, order of imports."""
    pytest.importorskip("ruff", reason="ruff is missing: pip install -e '.[dev]'")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_linter_reads_notebooks(tmp_path):
    pytest.importorskip("ruff", reason="ruff is missing: pip install -e '.[dev]'")
    cell = {
        "cell_type": "code",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "source": ["import os\n", "nothing\n"],
    }
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "F401" in done.stdout and "F821" in done.stdout


# ---------------------------------------------------------------- Windows and macOS

POSIX_MODULES = {"fcntl", "termios", "pwd", "grp", "pty", "tty", "syslog", "crypt", "posix"}
POSIX_CALLS = {
    "os.fork",
    "os.forkpty",
    "os.getuid",
    "os.geteuid",
    "os.setuid",
    "os.chown",
    "os.mkfifo",
    "os.killpg",
    "os.setsid",
    "os.getpgid",
    "os.wait",
    "os.nice",
    "os.uname",
    "os.getloadavg",
    "os.sysconf",
    "os.system",
    "os.popen",
    "signal.alarm",
    "signal.SIGKILL",
    "signal.SIGALRM",
    "signal.SIGUSR1",
    "signal.setitimer",
}
# File → names it may use, because the use stands behind a check of the system or a try.
GUARDED = {
    "minglm/runtime/machine.py": {"os.sysconf"},
    "minglm/tools/bench.py": {"os.getloadavg"},
    "minglm/tools/drills/processes.py": {"os.killpg", "signal.SIGKILL"},
    "minglm/tools/drills/kills.py": {"signal.SIGKILL"},
    "minglm/tools/drills/writers.py": {"signal.SIGKILL"},
}  # fault injection kills process groups: a tool for Linux servers, not for a class


def _posix_uses(code: str) -> set[str]:
    """Names that only POSIX has and that stand outside any try, if and hasattr."""
    found: set[str] = set()

    def walk(node, guarded: bool) -> None:
        guarded = guarded or isinstance(node, (ast.Try, ast.If, ast.IfExp))
        if not guarded:
            if isinstance(node, ast.Import):
                found.update(a.name for a in node.names if a.name.split(".")[0] in POSIX_MODULES)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in POSIX_MODULES:
                found.add(node.module)
            if isinstance(node, ast.Attribute) and ast.unparse(node) in POSIX_CALLS:
                found.add(ast.unparse(node))
            if isinstance(node, ast.keyword) and node.arg in ("preexec_fn", "shell"):
                if not (isinstance(node.value, ast.Constant) and node.value.value in (None, False)):
                    found.add(node.arg)
        for child in ast.iter_child_nodes(node):
            walk(child, guarded)

    walk(ast.parse(code), False)
    return found


def test_no_call_that_only_posix_has():
    wrong = {}
    for path in [*(ROOT / "minglm").rglob("*.py"), *(ROOT / "sim").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        if odd := _posix_uses(path.read_text(encoding="utf-8")) - GUARDED.get(name, set()):
            wrong[name] = odd
    for path in NOTEBOOKS:
        for code in _cells(path, "code"):
            assert not re.search(r"^\s*[!%]", code, flags=re.M), f"{path.name}: a shell escape"
            if odd := _posix_uses(code):
                wrong[path.name] = odd
    assert wrong == {}, "these names exist on POSIX systems only: use pathlib, shutil, subprocess, or guard them"


@pytest.mark.parametrize(
    "code,found",
    [
        ("import fcntl", {"fcntl"}),
        ("import os\nos.fork()", {"os.fork"}),
        ("subprocess.run('ls', shell=True)", {"shell"}),
        ("import os\nif hasattr(os, 'nice'):\n    os.nice(1)", set()),
        ("try:\n    import pwd\nexcept ImportError:\n    pwd = None", set()),
        ("subprocess.run(['ls'])", set()),
    ],
)
def test_the_search_finds_what_it_should(code, found):
    assert _posix_uses(code) == found


def test_files_are_read_as_utf8_everywhere():
    """Windows reads text in another encoding unless told."""
    wrong = []
    for path in [*(ROOT / "minglm").rglob("*.py"), *(ROOT / "sim").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("read_text", "write_text")
            ):
                if (
                    not any(k.arg == "encoding" for k in node.keywords)
                    and ast.unparse(node.func.value) != "atomic"  # which writes UTF-8
                    and "/proc" not in ast.unparse(node)
                    and "/sys" not in ast.unparse(node)
                ):
                    wrong.append(path.relative_to(ROOT).as_posix())
    assert set(wrong) <= KNOWN_WITHOUT_ENCODING, wrong


# machine.py reads /proc and /sys, which only Linux has.
KNOWN_WITHOUT_ENCODING = {"minglm/runtime/machine.py"}
