"""Every name that a notebook takes from the packages is there, also in cells that smoke mode leaves out."""

import ast
import importlib
import importlib.util
import json

import pytest

from minglm import datafiles

pytest.importorskip("torch")
NOTEBOOKS = sorted(datafiles.notebooks().rglob("*.ipynb"))


def missing(path) -> list[str]:
    out = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or any(line.startswith(("%", "!")) for line in source.splitlines()):
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom) or str(node.module).split(".")[0] not in ("minglm", "sim"):
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = hasattr(module, "__path__") and importlib.util.find_spec(whole) is not None
                if not hasattr(module, alias.name) and not is_module:
                    out.append(whole)
    return out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(datafiles.notebooks()).as_posix())
def test_what_a_notebook_imports_is_there(path):
    assert not missing(path)


def test_a_name_that_is_gone_is_seen(tmp_path):
    """Negative control."""
    cell = {"cell_type": "code", "source": ["from minglm.model.indexer import no_such_name\n"]}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert missing(tmp_path / "a.ipynb") == ["minglm.model.indexer.no_such_name"]
