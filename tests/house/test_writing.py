"""Every file of both packages is written by minglm/atomic.py: the places that write otherwise are counted.

A place that opens a file to write, or calls something that does, is listed with its line; the list must be empty."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPER = "minglm/atomic.py"
SOURCES = sorted(p for folder in ("minglm", "sim") for p in (ROOT / folder).rglob("*.py"))
# Methods and functions that write a file at the path they are given.
WRITERS = {
    "write_text",
    "write_bytes",
    "tofile",
    "to_csv",
    "to_json",
    "to_parquet",
    "savetxt",
    "savez",
    "savez_compressed",
    "write_html",
    "write_image",
    "urlretrieve",
    "touch",
    "copyfile",
    "copy2",
    "memmap",
}
QUALIFIED = {
    "torch.save",
    "np.save",
    "numpy.save",
    "json.dump",
    "pickle.dump",
    "shutil.copy",
    "shutil.move",
    "os.replace",
}
DUMPS = ("yaml.dump", "yaml.safe_dump", "yaml.dump_all")  # return the text unless they are given a stream
# By path, so only inside `with atomic.beside(…) as place`, and then at `place`.
BY_PATH = {"save_file", "savefig", "write_table"}
OPENERS = {"open", "io.open", "gzip.open", "bz2.open", "lzma.open", "codecs.open", "ZipFile", "zipfile.ZipFile"}


def _name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _mode(node: ast.Call) -> str:
    """The mode of an open(…), as its constant; of a Path's method the first argument."""
    for keyword in node.keywords:
        if keyword.arg == "mode" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    builtin = _name(node) in OPENERS
    place = node.args[1:2] if builtin else node.args[:1]
    return str(place[0].value) if place and isinstance(place[0], ast.Constant) else "r"


def _device(node: ast.Call) -> bool:
    """Output sent to nowhere."""
    return bool(node.args) and ast.unparse(node.args[0]) == "os.devnull"


def _places(tree: ast.AST) -> set[str]:
    """Names that `with atomic.beside(…) as NAME` and `atomic.opened(…) as NAME` give."""
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            for item in node.items:
                called = ast.unparse(item.context_expr).split("(")[0]
                if called in ("atomic.beside", "atomic.opened") and isinstance(item.optional_vars, ast.Name):
                    out.add(item.optional_vars.id)
    return out


def _written(node: ast.Call, places: set[str]) -> bool:
    called = _name(node)
    last = called.rpartition(".")[2]
    if called.startswith("atomic."):
        return False
    if (called in OPENERS or last == "open") and not _device(node):
        target = ast.unparse(node.args[0]) if node.args else ""
        return bool(set(_mode(node)) & set("wxa+")) and target not in places
    if last in BY_PATH:
        return not any(ast.unparse(a) in places for a in node.args)
    if last == "memmap":
        return not any(k.arg == "mode" and ast.unparse(k.value) == "'r'" for k in node.keywords)
    if last == "to_json":  # pandas writes with it; ours are methods that return text
        return bool(node.args)
    if called in DUMPS:
        return len(node.args) > 1 or any(k.arg == "stream" for k in node.keywords)
    return last in WRITERS or called in QUALIFIED


def _elsewhere(path: Path, name: str) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    places = _places(tree)
    return [
        f"{name}:{node.lineno}: {_name(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _written(node, places)
    ]


def test_no_file_is_written_but_by_the_helper():
    names = [p.relative_to(ROOT).as_posix() for p in SOURCES]
    assert len(names) > 100 and HELPER in names
    found = [f for p, n in zip(SOURCES, names, strict=True) if n != HELPER for f in _elsewhere(p, n)]
    assert found == [], f"{len(found)} places write a file without minglm/atomic.py"


@pytest.mark.parametrize(
    "line",
    [
        "open(p, 'w')",
        "open(p, mode='wb')",
        "open(p, 'r+b')",
        "open(p, 'a')",
        "p.open('w', encoding='utf-8')",
        "gzip.open(p, 'wt')",
        "zipfile.ZipFile(p, 'w')",
        "p.write_text(t)",
        "p.write_bytes(b)",
        "a.tofile(p)",
        "np.save(p, a)",
        "np.memmap(p, dtype=d, mode='r+')",
        "torch.save(x, p)",
        "json.dump(x, f)",
        "yaml.safe_dump(x, f)",
        "save_file(t, p)",
        "fig.savefig(p)",
        "shutil.copy(a, b)",
        "os.replace(a, b)",
        "fig.write_html(p)",
    ],
)
def test_the_search_can_find_each_way_of_writing(tmp_path, line):
    (tmp_path / "x.py").write_text(line + "\n", encoding="utf-8")
    assert len(_elsewhere(tmp_path / "x.py", "x.py")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "open(p)",
        "open(p, 'rb')",
        "np.memmap(p, dtype=d, mode='r')",
        "atomic.write_text(p, t)",
        "with atomic.beside(p) as place:\n    save_file(t, place)",
        "tar.open(name)",
        "yaml.safe_dump(x)",
        "sys.stdout = open(os.devnull, 'w')",
    ],
)
def test_the_search_passes_over_what_reads(tmp_path, line):
    (tmp_path / "x.py").write_text(line + "\n", encoding="utf-8")
    assert _elsewhere(tmp_path / "x.py", "x.py") == []
