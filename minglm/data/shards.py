"""Token shards on disk and the loader that walks them: memory-mapped, verified, and positioned by one integer.

A split is `NAME.bin` (token ids, little-endian uint16 or uint32) with `NAME.json` (hash, count, vocabulary, document
starts). The loader cuts the stream into windows, shuffles them anew each epoch, and computes the batch of any step from
`(seed, step)` alone, so a resumed run needs no loader state beyond the step number.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from minglm import atomic
from minglm.data import corpus as corpus_module
from minglm.data.synthetic_facts import CODE_WORDS
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.runtime import run_lock

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORE = -100  # target value that no loss counts
_REMEDY = "delete the folder and train again with --overwrite, which rebuilds it"


class Batch(NamedTuple):
    """tokens (B, T) int64; targets (B, T) the next token, -100 where nothing is to be learned; doc_start (B, T) the
    first position that each query may see."""

    tokens: torch.Tensor
    targets: torch.Tensor
    doc_start: torch.Tensor


@dataclass(frozen=True)
class Shard:
    """One split of a corpus as token ids. `tokens` is a read-only memory map of shape (count,)."""

    path: Path
    tokens: np.ndarray
    doc_offsets: np.ndarray  # (documents,) index of each document's <|bos|>
    header: dict

    def __len__(self) -> int:
        return len(self.tokens)


def write(
    path: Path, documents: Iterable[list[int]], vocab_size: int, tokenizer_sha256: str = "", corpus_sha256: str = ""
) -> Shard:
    """Write `path`.bin and `path`.json; each document is expected to carry its own <|bos|> and <|eos|>.

    Both are written beside and renamed, the header last: who reads the old ones under a memory map keeps them whole.
    """
    import numpy as np

    dtype = np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, count, offsets, largest = hashlib.sha256(), 0, [], -1
    header_path, bin_path = path.with_suffix(".json"), path.with_suffix(".bin")
    with atomic.opened(bin_path, binary=True, durable=True) as out:
        for document in documents:
            if not len(document):
                continue
            ids = np.asarray(document, dtype=np.int64)
            if ids.min() < 0 or ids.max() >= vocab_size:
                raise InputError(
                    f"{bin_path}: token id {int(ids.max() if ids.max() >= vocab_size else ids.min())} does not fit "
                    f"vocab_size={vocab_size}; use the tokenizer and the model of the same recipe"
                )
            raw = ids.astype(dtype).tobytes()
            offsets.append(count)
            count, largest = count + len(ids), max(largest, int(ids.max()))
            digest.update(raw)
            out.write(raw)
        if not count:
            raise InputError(f"{bin_path}: no tokens to write; give a corpus with text in it")
    header = {
        "format": "minglm-shard-1",
        "tokens": count,
        "dtype": dtype.str,
        "vocab_size": vocab_size,
        "largest_id": largest,
        "sha256": digest.hexdigest(),
        "tokenizer_sha256": tokenizer_sha256,
        "corpus_sha256": corpus_sha256,
        "doc_offsets": offsets,
    }
    atomic.write_json(header_path, header, indent=None, durable=True)
    return open_shard(path)


def open_shard(path: Path) -> Shard:
    """Map a shard and verify it against its header.

    Raises:
        InputError: missing, truncated or altered; names the file and says to rebuild it.
    """
    import numpy as np

    header_path, bin_path = path.with_suffix(".json"), path.with_suffix(".bin")
    try:
        header = json.loads(header_path.read_text(encoding="utf-8"))
        dtype, count = np.dtype(header["dtype"]), int(header["tokens"])
        offsets = np.asarray(header["doc_offsets"], dtype=np.int64)
        expected, largest, vocab = header["sha256"], int(header["largest_id"]), int(header["vocab_size"])
    except FileNotFoundError:
        raise InputError(f"{header_path}: no such shard header; {_REMEDY}") from None
    except (ValueError, KeyError, TypeError) as err:
        raise InputError(f"{header_path}: not a shard header ({type(err).__name__}: {err}); {_REMEDY}") from None
    size = bin_path.stat().st_size if bin_path.is_file() else -1
    if size != count * dtype.itemsize:
        state = (
            "is missing"
            if size < 0
            else f"has {size} bytes, {'truncated' if size < count * dtype.itemsize else 'too long'}"
        )
        raise InputError(f"{bin_path}: {state}; its header says {count * dtype.itemsize} bytes; {_REMEDY}")
    tokens = np.memmap(bin_path, dtype=dtype, mode="r")
    if hashlib.sha256(tokens.data).hexdigest() != expected:
        raise InputError(f"{bin_path}: content differs from the hash in its header (altered or damaged); {_REMEDY}")
    if largest >= vocab or not len(offsets) or offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] >= count:
        raise InputError(f"{header_path}: document offsets or ids do not fit the {count} tokens; {_REMEDY}")
    return Shard(path, tokens, offsets, header)


@dataclass(frozen=True)
class Built:
    """What `build` makes of a corpus, or finds made; unpacks into tokenizer, training and validation shard."""

    tokenizer: Tokenizer
    train: Shard
    validation: Shard | None  # None: there is no unseen text
    folder: Path
    rule: str  # how the validation text was chosen
    left_out: str = ""  # what of the source is not read, in one line; empty for nothing

    def __iter__(self) -> Iterator[Tokenizer | Shard | None]:
        return iter((self.tokenizer, self.train, self.validation))


def build(
    source: str, parent: Path, vocab_size: int, max_bytes: int | None = None, tokenizer_path: Path | None = None
) -> Built:
    """Corpus → tokenizer → train and validation shards in a folder under `parent`; reused when they are there.

    The folder's name carries a hash of all names and texts, so that edited text, and other text of the same relative
    path, is never taken for the old. It holds tokenizer.json, corpus.json (the manifest), train.bin/.json,
    validation.bin/.json and, written last, done.json. With `tokenizer_path` the given tokenizer is used instead of a
    new one.
    """
    text = corpus_module.load(source, max_bytes)
    key = hashlib.sha256(json.dumps([text.key, vocab_size, max_bytes]).encode()).hexdigest()[:12]
    slug = "".join(c if c.isalnum() else "-" for c in source)[-48:].strip("-")
    folder = parent / f"{slug}-{vocab_size}-{key}"
    given = Tokenizer.load(tokenizer_path) if tokenizer_path else None
    if given and not _made_with(folder, given):  # else the shared folder was made with this very tokenizer
        folder = folder.with_name(f"{folder.name}-{given.sha256[:8]}")
    if not (folder / "done.json").is_file():
        with run_lock.hold(folder, "a run that makes these shards", wait=True):
            if not (folder / "done.json").is_file():  # else the one that we waited for made them
                _make(text, folder, vocab_size, given)
    return replace(open_built(folder), left_out=text.left_out())


def _made_with(folder: Path, tokenizer: Tokenizer) -> bool:
    return (folder / "done.json").is_file() and Tokenizer.load(folder).sha256 == tokenizer.sha256


def open_built(folder: Path) -> Built:
    """The shards that `build` made in this folder; the corpus itself is not read.

    Raises:
        InputError: missing or damaged.
    """
    try:
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        rule, has_validation = str(done["validation"]), bool(done["has_validation"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise InputError(f"{folder / 'done.json'}: missing or damaged ({type(err).__name__}); {_REMEDY}") from None
    validation = open_shard(folder / "validation") if has_validation else None
    return Built(Tokenizer.load(folder), open_shard(folder / "train"), validation, folder, rule)


def _make(text: corpus_module.Corpus, folder: Path, vocab_size: int, tokenizer: Tokenizer | None) -> None:
    """Write what `build` promises."""
    split = text.split()
    if tokenizer is None:
        # A small vocabulary has no room for them: there a code word stays in pieces.
        whole = CODE_WORDS if vocab_size >= 1024 else ()
        tokenizer = Tokenizer.train([d.text for d in split.train], vocab_size, whole=whole)
    tokenizer.save(folder / "tokenizer.json")
    atomic.write_json(folder / "corpus.json", text.manifest())
    for name, documents in (("train", split.train), ("validation", split.validation)):
        if documents:
            ids = tokenizer.encode_batch([d.text for d in documents])
            rows = ([tokenizer.bos, *row, tokenizer.eos] for row in ids)
            write(folder / name, rows, vocab_size, tokenizer.sha256, text.sha256)
    done = {"validation": split.rule, "has_validation": bool(split.validation)}
    atomic.write_json(folder / "done.json", done, indent=None, durable=True)


class BatchSource(Protocol):
    """What gives the batches of a run: the same batch for the same step, always."""

    batch_size: int
    seq_len: int

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass."""
        ...


class Loader:
    """Batches of windows of a shard; `batch(step)` depends on (shard, shape, seed, step) and nothing else.

    Each epoch visits every window once, in a new order and from a new phase, so that documents are not always cut at
    the same places. The data position of a run is therefore the step alone.
    """

    def __init__(self, shard: Shard, batch_size: int, seq_len: int, seed: int = 0) -> None:
        if batch_size < 1 or seq_len < 1:
            raise InputError(f"batch_size={batch_size}, seq_len={seq_len}: both must be at least 1")
        if len(shard) < seq_len + 1:
            raise InputError(
                f"{shard.path}.bin: {len(shard)} tokens are fewer than one window of seq_len+1={seq_len + 1}; "
                "use a smaller seq_len or a larger corpus"
            )
        self.shard, self.batch_size, self.seq_len, self.seed = shard, batch_size, seq_len, seed
        # A phase of up to seq_len−1 tokens is skipped at the front of each epoch: one window fewer than would fit.
        self.windows = max(1, (len(shard) - 1) // seq_len - 1)
        self._epoch: tuple[int, int, object] | None = None

    def starts(self, step: int) -> np.ndarray:
        """(B,) index of the first token of each row of this step."""
        import numpy as np

        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        out = np.empty(self.batch_size, dtype=np.int64)
        for i, row in enumerate(rows):
            epoch, index = divmod(int(row), self.windows)
            phase, order = self._order(epoch)
            out[i] = phase + order[index] * self.seq_len
        return out

    def _order(self, epoch: int):
        import numpy as np

        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            room = len(self.shard) - 1 - self.windows * self.seq_len
            phase = int(rng.integers(0, min(self.seq_len, room + 1)))
            self._epoch = (epoch, phase, rng.permutation(self.windows))
        return self._epoch[1:]

    def batch(self, step: int) -> Batch:
        """The rows of one forward pass."""
        import numpy as np
        import torch

        starts = self.starts(step)
        windows = np.stack([self.shard.tokens[s : s + self.seq_len + 1] for s in starts]).astype(np.int64)  # (B, T+1)
        positions = starts[:, None] + np.arange(self.seq_len + 1)  # (B, T+1)
        document = np.searchsorted(self.shard.doc_offsets, positions, side="right") - 1
        doc_start = np.maximum(self.shard.doc_offsets[document] - starts[:, None], 0)
        targets = windows[:, 1:].copy()
        # The first token of a document cannot be predicted from the one before it.
        targets[document[:, 1:] != document[:, :-1]] = IGNORE
        return Batch(
            torch.from_numpy(windows[:, :-1].copy()),
            torch.from_numpy(targets),
            torch.from_numpy(doc_start[:, :-1].copy()),
        )
