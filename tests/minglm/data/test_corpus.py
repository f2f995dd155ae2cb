"""Text sources: what is read, what is left out, and that the split by file never moves."""

import pytest

from minglm.data import corpus
from minglm.errors import InputError


@pytest.fixture(autouse=True)
def _no_cache():
    corpus.load.cache_clear()


def test_standard_library_is_there_with_its_record():
    text = corpus.load("stdlib")
    names = {d.name for d in text.documents}
    assert len(names) == len(text.documents) > 300 and text.num_bytes > 5_000_000
    assert "argparse.py" in names and any(n.startswith("pydoc_data/topics/") for n in names)
    assert not [n for n in names if n.startswith(("test/", "site-packages/")) or "/tests/" in n]
    manifest = text.manifest()
    assert manifest["origin"]["python"] and len(manifest["sha256"]) == 64
    assert set(manifest["files"]) == names and all(len(f["sha256"]) == 64 for f in manifest["files"].values())


def test_split_is_by_file_disjoint_and_stable(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    train, valid = corpus.load(f"folder:{tmp_path}").split()
    train_names, valid_names = {d.name for d in train}, {d.name for d in valid}
    assert not train_names & valid_names and len(train_names | valid_names) == 200 and 1 <= len(valid_names) <= 30
    corpus.load.cache_clear()
    (tmp_path / "another.txt").write_text("more")
    (tmp_path / sorted(train_names)[0]).write_text("edited")
    _, again = corpus.load(f"folder:{tmp_path}").split()
    assert {d.name for d in again} - {"another.txt"} == valid_names, "adding or editing a file must not move others"


def test_binary_unreadable_and_empty_files_are_left_out_and_named(tmp_path):
    (tmp_path / "good.txt").write_text("some text")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    text = corpus.load(f"folder:{tmp_path}")
    assert [d.name for d in text.documents] == ["good.txt"]
    assert {name: reason.split(":")[0] for name, reason in text.skipped} == {
        "binary.txt": "not UTF-8 text",
        "nul.txt": "binary",
        "empty.txt": "empty",
    }


def test_changed_text_changes_the_hash(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = corpus.load(f"folder:{tmp_path}").sha256
    corpus.load.cache_clear()
    (tmp_path / "a.txt").write_text("two")
    assert corpus.load(f"folder:{tmp_path}").sha256 != before


@pytest.mark.parametrize(
    "source, says",
    [
        ("folder:/no/such/place", "no such folder"),
        ("stdlb", "did you mean 'stdlib'"),
        ("folder:", "must be stdlib, folder:PATH or hf:NAME"),
    ],
)
def test_bad_source_is_one_line_with_a_remedy(source, says):
    with pytest.raises(InputError) as caught:
        corpus.load(source)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match="no text in it"):
        corpus.load(f"folder:{tmp_path}")


def test_hugging_face_without_the_package_or_network_says_what_to_do(monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        corpus.load("hf:anything")
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(InputError, match="127.0.0.1 cannot be reached.*folder:PATH"):
        corpus.load("hf:anything")


def test_hugging_face_reads_the_text_column(monkeypatch):
    """Against a stand-in for the library's two names that are used; the network is not."""
    import socket
    import sys
    import types

    module = types.ModuleType("datasets")
    module.__version__ = "0"
    module.load_dataset = lambda name, split, streaming: [{"label": 1, "text": "first"}, {"label": 0, "text": "second"}]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: types.SimpleNamespace(close=lambda: None))
    assert [d.text for d in corpus.load("hf:name").documents] == ["first", "second"]


def test_max_bytes_keeps_whole_documents():
    small, full = corpus.load("stdlib", 200_000), corpus.load("stdlib")
    assert 50_000 < small.num_bytes <= 260_000
    texts = {d.name: d.text for d in full.documents}
    assert all(texts[d.name] == d.text for d in small.documents)
    train, valid = small.split()
    assert train and valid
