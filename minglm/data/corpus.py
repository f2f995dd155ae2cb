"""Text to train on: the Python standard library by default, a folder of text, or a Hugging Face dataset.

A source is one string: `stdlib`, `folder:PATH` or `hf:NAME`. Every document keeps its name, and the hash of the name
alone decides whether it is validation text, so a file never moves between the two halves and validation files are
unseen as a whole. Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from minglm.errors import InputError, nearest

VALIDATION_SHARE = 0.05  # of documents
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


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their names, what was left out, and where it all came from."""

    source: str
    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason)
    origin: dict = field(default_factory=dict)  # e.g. the Python version

    def split(self) -> tuple[list[Document], list[Document]]:
        """(training documents, validation documents), disjoint by file.

        A corpus too small for the hash to choose any validation document gives its last one; a corpus of one document
        validates on that document, for want of another.
        """
        train = [d for d in self.documents if not d.is_validation]
        valid = [d for d in self.documents if d.is_validation]
        if len(self.documents) == 1:
            return list(self.documents), list(self.documents)
        if not valid:
            train, valid = train[:-1], train[-1:]
        if not train:
            train, valid = valid[:-1], valid[-1:]
        return train, valid

    @property
    def sha256(self) -> str:
        """Hash of the concatenation of all texts in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.text.encode("utf-8"))
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        """Length of all texts in UTF-8."""
        return sum(len(d.text.encode("utf-8")) for d in self.documents)

    def manifest(self) -> dict:
        """What a run records about its text: source, versions, hash of all and of each file, which half each is in."""
        return {
            "source": self.source,
            "origin": self.origin,
            "sha256": self.sha256,
            "bytes": self.num_bytes,
            "files": {
                d.name: {"sha256": d.sha256, "split": "validation" if d.is_validation else "train"}
                for d in self.documents
            },
            "skipped": {name: reason for name, reason in self.skipped},
        }


@lru_cache(maxsize=2)
def load(source: str = "stdlib", max_bytes: int | None = None) -> Corpus:
    """Read a text source.

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
            f"corpus {source!r}: no text in it ({len(corpus.skipped)} files left out as binary, unreadable or "
            "empty); give a folder with UTF-8 text files, or use corpus: stdlib"
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
    return (d for d in documents if d.name in chosen)


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
    if not root.is_dir():
        raise InputError(f"corpus folder {str(root)!r}: no such folder; give folder:PATH with a folder of text files")
    paths = (
        p
        for p in root.rglob("*")
        if p.is_file()
        and p.suffix.lower() in _TEXT_SUFFIXES
        and not any(part.startswith(".") or part == "__pycache__" for part in p.relative_to(root).parts)
    )
    documents, skipped = _read(root, paths)
    return Corpus(f"folder:{root}", tuple(documents), tuple(skipped), {"folder": str(root)})


def _read(root: Path, paths: Iterator[Path]) -> tuple[list[Document], list[tuple[str, str]]]:
    documents, skipped = [], []
    for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        try:
            raw = path.read_bytes()
        except OSError as err:
            skipped.append((name, f"unreadable: {err.strerror}"))
            continue
        try:
            text = raw.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            skipped.append((name, "not UTF-8 text"))
            continue
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
    import os
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
