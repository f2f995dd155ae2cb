"""Text sources: what is read, what is left out, and that the split by file never moves."""

import random

import pytest

from minglm.data import corpus
from minglm.errors import InputError


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
        (tmp_path / f"{i}.txt").write_text(f"text {i:03d}")
    train, valid = corpus.load(f"folder:{tmp_path}").split()
    train_names, valid_names = {d.name for d in train}, {d.name for d in valid}
    assert not train_names & valid_names and len(train_names | valid_names) == 200 and 1 <= len(valid_names) <= 30
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
        "picture.png": "the ending .png is not read as text",
    }


# What people have on their disks: bytes of a file beside good.txt → its text, or why it is left out.
FILES = {
    "plain.txt": (b"To be.\n", "To be.\n"),
    "bom.txt": ("\ufeffTo be\n".encode(), "To be\n"),
    "crlf.txt": (b"one\r\ntwo\r\n", "one\ntwo\n"),
    "cr.txt": (b"one\rtwo\r", "one\ntwo\n"),
    "crcrlf.txt": (b"one\r\r\ntwo", "one\n\ntwo"),
    "UPPER.TXT": (b"hello", "hello"),
    "separator.txt": ("a\u2028b".encode(), "a\u2028b"),
    "utf16.txt": ("To be\n".encode("utf-16"), "not UTF-8 text: UTF-16"),
    "latin1.txt": ("Grüße\n".encode("latin-1"), "not UTF-8 text: byte 0xfc at 2"),
    "one_bad_byte.txt": (b"word " * 200_000 + b"\xff", "not UTF-8 text: byte 0xff at 1000000"),
    "nul.txt": (b"a\0b", "binary: contains NUL"),
    "only_a_bom.txt": ("\ufeff".encode(), "empty"),
    "a.text": (b"hello", "the ending .text is not read as text"),
    "b.log": (b"hello", "the ending .log is not read as text"),
    ".hidden.txt": (b"hello", "hidden"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_people_have_them_are_read_or_named(name, tmp_path):
    raw, expected = FILES[name]
    (tmp_path / "good.txt").write_text("some text")
    (tmp_path / name).write_bytes(raw)
    found = corpus.load(f"folder:{tmp_path}")
    texts = {d.name: d.text for d in found.documents}
    if name in texts:
        assert texts[name] == expected and not found.left_out()
    else:
        assert dict(found.skipped) == {name: expected}
        assert f"1 left out: {name} ({expected})" in found.left_out() and "\n" not in found.left_out()
    assert texts["good.txt"] == "some text"


def test_many_left_out_are_told_in_one_line(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.dat").write_bytes(b"x")
    with pytest.raises(InputError, match="9 left out: 0.dat .*and 6 more"):
        corpus.load(f"folder:{tmp_path}")
    assert corpus.load("stdlib").left_out() == "", "nothing that a user could do about"


def test_a_file_for_a_folder_is_refused_and_the_remedy_works(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match="is a file, not a folder; put it into a folder of its own"):
        corpus.load(f"folder:{tmp_path / 'a.txt'}")
    assert corpus.load(f"folder:{tmp_path}").documents


# ---------------------------------------------------------------------- unseen text


def halves(folder):
    split = corpus.load(f"folder:{folder}").split()
    train, valid = ("\n".join(d.text for d in half) for half in split)
    return split, train, valid


@pytest.mark.parametrize("files", [1, 2, 3, 30])
@pytest.mark.parametrize("line_ends", [True, False])
def test_validation_is_unseen_text_however_few_the_files(files, line_ends, tmp_path):
    rng = random.Random(files)
    words = [f"w{n:09d}" for n in rng.sample(range(10**9), files * 400)]
    for i in range(files):
        lines = words[i * 400 : (i + 1) * 400]
        (tmp_path / f"{i}.txt").write_text("\n".join(lines) if line_ends else " ".join(lines))
    split, train, valid = halves(tmp_path)
    assert valid and not {w for w in words if w in train} & {w for w in words if w in valid}
    assert {w for w in words if w in train or w in valid} == set(words), "no word is cut in two or lost"
    assert 0.01 < len(valid) / len(train) < 0.25 and "unseen" not in split.rule
    places = {f["split"] for f in corpus.load(f"folder:{tmp_path}").manifest()["files"].values()}
    assert places <= {"train", "validation", "train, its end validation"} and len(places) >= 1


def test_equal_texts_are_on_one_side(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"text number {i % 100:02d}")
    _, train, valid = halves(tmp_path)
    texts = {f"text number {i:02d}" for i in range(100)}
    assert {t for t in texts if t in valid} and not {t for t in texts if t in train and t in valid}


def test_a_corpus_too_short_to_part_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("word")
    split, train, _ = halves(tmp_path)
    assert not split.validation and train == "word" and split.rule.startswith("no unseen text")


def test_one_chosen_document_that_is_most_of_the_text_is_cut_instead(tmp_path):
    name = next(f"{i}.txt" for i in range(1000) if corpus.Document(f"{i}.txt", "").is_validation)
    (tmp_path / name).write_text("word " * 10_000)
    (tmp_path / "other-a.txt").write_text("small " * 100)
    split, train, valid = halves(tmp_path)
    assert split.rule == "the last tenth of each document" and 8 < len(train) / len(valid) < 10


def test_the_key_is_of_names_texts_and_nothing_else(tmp_path):
    def key(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.txt").write_text(text)
        return corpus.load(f"folder:{folder}").key

    first = key(a="one", b="two")
    assert key(a="one", b="two") == first
    assert len({first, key(a="onet", b="wo"), key(a="one", c="two"), key(a="two", b="one"), key(a="one", b="twp")}) == 5


def test_changed_text_changes_the_hash(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = corpus.load(f"folder:{tmp_path}").sha256
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


def test_the_share_held_out_is_one_in_twenty_by_the_names_hash():
    """The first 8 bytes of SHA-256 below a twentieth of 2^64, document by document and in the mean of 4,000."""
    import hashlib

    documents = tuple(corpus.Document(f"{i}.txt", f"text number {i:05d}") for i in range(4000))
    split = corpus.Corpus("folder:x", documents).split()
    want = [d for d in documents if int(hashlib.sha256(d.name.encode()).hexdigest()[:16], 16) * 20 < 2**64]
    assert split.validation == want and len(split.train) == 4000 - len(want)
    assert abs(len(want) - 200) < 4 * (4000 * 0.05 * 0.95) ** 0.5
    assert split.rule == f"{len(want)} of 4000 documents, by the hash of their names"


@pytest.mark.parametrize("length", [10, 95, 1000])
def test_the_cut_of_a_single_document_is_its_last_tenth(length):
    """Without a space near: all but the last tenth, rounded down. With one: behind the first in the next twentieth."""
    [train], [valid] = corpus.Corpus("folder:x", (corpus.Document("a.txt", "x" * length),)).split()
    assert (len(train.text), len(valid.text)) == (length - length // 10, length // 10)
    words = "abc " * 250
    [train], [valid] = corpus.Corpus("folder:x", (corpus.Document("a.txt", words),)).split()
    assert train.text + valid.text == words and (len(train.text), len(valid.text)) == (904, 96)
