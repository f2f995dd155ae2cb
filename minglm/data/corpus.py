"""Text to train on: the Python standard library by default, a folder of text, or a Hugging Face dataset.

A source is one string: `stdlib`, `folder:PATH` or `hf:NAME`. Every document keeps its name, and the hash of the name
decides whether it is validation text, so that a file does not move between the two halves when others are added and
validation files are unseen as a whole. Where that leaves too little or too much, as in a corpus of one file, the last
tenth of every document is held out. Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from minglm.errors import InputError, nearest

VALIDATION_SHARE = 0.05  # of documents
FAIR_SHARE = (0.01, 0.2)  # of the text, in which documents chosen by hash serve for validation
CUT_PARTS = 10  # else one part in so many of each document
SPLIT_VERSION = b"split 2"  # changed with the rule, so that shards of another rule are not taken for these
TOLD = 3  # files left out that are named on the terminal
MAX_HF_BYTES = 50_000_000  # a data set on the network is read until this much text has come
_SKIP_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "turtledemo"}
_TEXT_SUFFIXES = {
    ".txt",
    ".md",
    ".py",
    ".rst",
    ".json",
    ".jsonl",
    ".csv",
    ".html",
    ".c",
    ".h",
    ".cpp",
    ".js",
    ".ts",
    ".java",
    ".go",
    ".rs",
    ".sh",
    ".yaml",
    ".yml",
    ".toml",
    ".tex",
    ".ipynb",
    "",
}


@dataclass(frozen=True)
class Document:
    """One file or record. `name` is its path relative to the source, with forward slashes."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    @property
    def is_validation(self) -> bool:
        """Decided by the name alone, so that it is stable when files are added or edited."""
        digest = hashlib.sha256(self.name.encode("utf-8")).digest()
        return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode("utf-8"))

    def cut(self) -> tuple[Document, Document] | None:
        """(all but the last tenth, the last tenth), cut at a line end or a space where one is near; None where a part
        would hold no word."""
        at = len(self.text) - len(self.text) // CUT_PARTS
        near = self.text[at : at + len(self.text) // (2 * CUT_PARTS)]
        at += next((near.index(c) + 1 for c in "\n " if c in near), 0)
        parts = Document(self.name, self.text[:at]), Document(self.name, self.text[at:])
        return parts if all(part.text.strip() for part in parts) else None


@dataclass(frozen=True)
class Split:
    """The two halves of a corpus, without a byte in common, and the rule that parted them."""

    train: list[Document]
    validation: list[Document]  # empty: there is no unseen text
    rule: str

    def __iter__(self) -> Iterator[list[Document]]:
        return iter((self.train, self.validation))

    def place(self, name: str) -> str:
        """Where a document's text is: "train", "validation" or both: "train, its end validation"."""
        here = [half for half, docs in self._names.items() if name in docs]
        return ", its end ".join(here)

    @cached_property
    def _names(self) -> dict[str, set[str]]:
        return {"train": {d.name for d in self.train}, "validation": {d.name for d in self.validation}}


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their names, what was left out, and where it all came from."""

    source: str
    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason)
    origin: dict = field(default_factory=dict)  # e.g. the Python version

    def split(self) -> Split:
        """(training documents, validation documents): validation is text that training never sees.

        Whole documents, chosen by the hash of their names, where those hold a fair part of the text (1 to 20%); else
        the last tenth of every document. Documents of equal text are on one side.
        """
        side: dict[str, bool] = {}
        for d in self.documents:
            side.setdefault(d.text, d.is_validation)
        train, valid = ([d for d in self.documents if side[d.text] is kind] for kind in (False, True))
        least, most = FAIR_SHARE
        if least <= sum(d.num_bytes for d in valid) / max(1, self.num_bytes) <= most:
            return Split(train, valid, f"{len(valid)} of {len(self.documents)} documents, by the hash of their names")
        cuts = [(d, d.cut()) for d in self.documents]
        train, valid = [c[0] if c else d for d, c in cuts], [c[1] for _, c in cuts if c]
        if not valid:
            return Split(train, [], "no unseen text: the documents are too short to hold a part out")
        return Split(train, valid, f"the last tenth of {'the one document' if len(cuts) == 1 else 'each document'}")

    @property
    def sha256(self) -> str:
        """Hash of the concatenation of all texts in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.text.encode("utf-8"))
        return digest.hexdigest()

    @property
    def key(self) -> str:
        """Hash of every name and text, and of the rule of the split: what shards made from this corpus are kept
        under, so that edited text is never taken for the old one."""
        digest = hashlib.sha256(SPLIT_VERSION)
        for d in self.documents:
            digest.update(json.dumps([d.name, d.sha256]).encode())
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        """Length of all texts in UTF-8."""
        return sum(d.num_bytes for d in self.documents)

    def manifest(self) -> dict:
        """What a run records about its text: source, versions, hash of all and of each file, which half each is in."""
        split = self.split()
        return {
            "source": self.source,
            "origin": self.origin,
            "sha256": self.sha256,
            "bytes": self.num_bytes,
            "validation": split.rule,
            "files": {d.name: {"sha256": d.sha256, "split": split.place(d.name)} for d in self.documents},
            "skipped": {name: reason for name, reason in self.skipped},
        }

    def left_out(self) -> str:
        """What of the source is not read, in one line; empty where that is nothing, or nothing to be done about."""
        if not self.skipped or self.source == "stdlib":
            return ""
        named = ", ".join(f"{name} ({reason})" for name, reason in self.skipped[:TOLD])
        more = f" and {len(self.skipped) - TOLD} more, all in corpus.json" if len(self.skipped) > TOLD else ""
        return f"{self.source}: {len(self.skipped)} left out: {named}{more}"


def load(source: str = "stdlib", max_bytes: int | None = None) -> Corpus:
    """Read a text source, anew each time but for the standard library.

    Args:
        source: `stdlib`, `folder:PATH` or `hf:NAME` (its `train` split, column `text`).
        max_bytes: keep documents, spread evenly over the source, up to about this much text; for tests and nano runs.

    Raises:
        InputError: unknown source, no such folder, no text in it, or a data set that cannot be fetched.
    """
    kind, _, rest = source.partition(":")
    if kind == "stdlib" and not rest:
        corpus = _stdlib()
    elif kind == "folder" and rest:
        corpus = _folder(Path(rest).expanduser())
    elif kind == "hf" and rest:
        corpus = _hugging_face(rest)
    else:
        raise InputError(
            f"corpus {source!r}: must be stdlib, folder:PATH or hf:NAME{nearest(kind, ('stdlib', 'folder', 'hf'))}"
        )
    if not any(d.text.strip() for d in corpus.documents):
        raise InputError(
            f"corpus {source!r}: no text in it ({corpus.left_out() or 'it is empty'}); give a folder with UTF-8 text "
            "files, or use corpus: stdlib"
        )
    if max_bytes is not None and corpus.num_bytes > max_bytes:
        corpus = Corpus(
            corpus.source,
            tuple(_thin(corpus.documents, max_bytes)),
            corpus.skipped,
            {**corpus.origin, "max_bytes": max_bytes},
        )
    return corpus


def _thin(documents: tuple[Document, ...], max_bytes: int) -> Iterator[Document]:
    """Documents in hash order of their names until the budget is spent, back in name order."""
    by_hash = sorted(documents, key=lambda d: hashlib.sha256(b"thin" + d.name.encode()).digest())
    chosen, used = set(), 0
    for document in by_hash:
        if used and used + len(document.text) > max_bytes:
            continue
        chosen.add(document.name)
        used += len(document.text)
    # One that is longer than the whole budget gives its beginning.
    return (Document(d.name, d.text[:max_bytes]) for d in documents if d.name in chosen)


@lru_cache(maxsize=1)  # of a running Python it does not change
def _stdlib() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    paths = (p for p in root.rglob("*.py") if not _SKIP_FOLDERS & set(p.relative_to(root).parts[:-1]))
    documents, skipped = _read(root, paths)
    # The topic texts are prose: take each one as a document instead of one file of string literals.
    documents = [d for d in documents if d.name != "pydoc_data/topics.py"]
    try:
        topics = dict(importlib.import_module("pydoc_data.topics").topics)
    except ImportError:  # some distributions ship Python without it
        topics = {}
    documents += [Document(f"pydoc_data/topics/{name}.txt", text) for name, text in topics.items() if text.strip()]
    return Corpus(
        "stdlib",
        tuple(sorted(documents, key=lambda d: d.name)),
        tuple(skipped),
        {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "licence": "Python Software Foundation Licence",
        },
    )


def _folder(root: Path) -> Corpus:
    if root.is_file():
        raise InputError(
            f"corpus folder {str(root)!r}: is a file, not a folder; put it into a folder of its own and give that one"
        )
    if not root.is_dir():
        raise InputError(f"corpus folder {str(root)!r}: no such folder; give folder:PATH with a folder of text files")
    paths, skipped = [], []
    for where, folders, files in os.walk(root):
        inside = Path(where).relative_to(root)
        for name in (*folders, *files):
            if name.startswith("."):
                skipped.append(((inside / name).as_posix(), "hidden"))
            elif name in folders and (Path(where) / name).is_symlink():
                skipped.append(((inside / name).as_posix(), "a link to a folder"))
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        for path in (Path(where) / name for name in files if not name.startswith(".")):
            if path.suffix.lower() in _TEXT_SUFFIXES:
                paths.append(path)
            else:
                skipped.append((path.relative_to(root).as_posix(), f"the ending {path.suffix} is not read as text"))
    documents, unread = _read(root, paths)
    return Corpus(f"folder:{root}", tuple(documents), tuple(unread + sorted(skipped)), {"folder": str(root.resolve())})


def _read(root: Path, paths: Iterable[Path]) -> tuple[list[Document], list[tuple[str, str]]]:
    documents, skipped = [], []
    for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        try:
            raw = path.read_bytes()
        except OSError as err:
            skipped.append((name, f"unreadable: {err.strerror}"))
            continue
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as err:
            what = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{raw[err.start]:02x} at {err.start}"
            skipped.append((name, f"not UTF-8 text: {what}"))
            continue
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if "\0" in text:
            skipped.append((name, "binary: contains NUL"))
        elif not text.strip():
            skipped.append((name, "empty"))
        else:
            documents.append(Document(name, text))
    return documents, skipped


def _hugging_face(name: str) -> Corpus:
    remedy = f"use corpus: stdlib, or save the text in a folder and use folder:PATH instead of hf:{name}"
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"corpus 'hf:{name}': the package `datasets` is not installed; pip install datasets, or {remedy}"
        ) from None
    # Ask the host first: the library itself would retry for minutes where there is no network.
    import socket
    from urllib.parse import urlparse

    endpoint = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=3).close()
    except OSError as err:
        raise InputError(f"corpus 'hf:{name}': {endpoint.hostname} cannot be reached ({err}); {remedy}") from None
    try:
        stream = datasets.load_dataset(name, split="train", streaming=True)
        documents, used = [], 0
        for i, row in enumerate(stream):
            text = row.get("text") or next((v for v in row.values() if isinstance(v, str)), "")
            if text.strip():
                documents.append(Document(f"{i:08d}", text))
                used += len(text)
            if used >= MAX_HF_BYTES:
                break
    except Exception as err:  # the library raises its own many kinds; the user needs one line
        raise InputError(
            f"corpus 'hf:{name}': {type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}; {remedy}"
        ) from None
    return Corpus(f"hf:{name}", tuple(documents), (), {"dataset": name, "datasets": datasets.__version__})
