"""Byte-level BPE tokenizer: any text encodes without an unknown token, digits stay single, training is deterministic.

Wraps the `tokenizers` library and its `tokenizer.json`, which other tools read too. Digits are split one by one so that
a number is spelled, not memorised: copying "4821" is then four equal steps.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError

# Order is identity: <|bos|> is 0 and <|eos|> is 1, as ModelConfig's defaults say.
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
LONGEST_RUN = 256  # characters without a space, or of space, that are one piece at most
_SAMPLE_BYTES = 3_000_000  # enough text for the merges of a small vocabulary; keeps training within seconds
# How byte-level BPE writes each byte as a printable character (GPT-2's encoder.py): those that are printable stand for
# themselves, the others follow from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(b): b for b in _PRINTABLE} | {
    chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in set(_PRINTABLE))
}


class Tokenizer:
    """Text to token ids and back. Make one with `Tokenizer.train` or `Tokenizer.load`."""

    def __init__(self, backend) -> None:
        self._backend = backend
        missing = [t for t in SPECIAL_TOKENS if backend.token_to_id(t) is None]
        if missing:
            raise InputError(
                f"tokenizer lacks the special tokens {', '.join(missing)}; train it with minglm.data.tokenizer"
            )
        self.bos, self.eos, self.pad, self.system, self.user, self.assistant = (
            backend.token_to_id(t) for t in SPECIAL_TOKENS
        )
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self._byte_level = type(backend.decoder).__name__ == "ByteLevel"

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, sample_bytes: int = _SAMPLE_BYTES, whole: Iterable[str] = ()
    ) -> Tokenizer:
        """Learn merges from `texts`, of which an even sample of about `sample_bytes` characters is read.

        The words `whole` are added often enough for each, after a space, to become one token.

        Raises:
            InputError: `vocab_size` leaves no room for the 256 bytes and the special tokens.
        """
        backend_module = _tokenizers()
        least = 256 + len(SPECIAL_TOKENS)
        if vocab_size < least:
            raise InputError(
                f"vocab_size={vocab_size}: a byte-level vocabulary needs the 256 bytes and {len(SPECIAL_TOKENS)} "
                f"special tokens; use {least} or more"
            )
        texts = list(texts)
        step = max(1, round(sum(map(len, texts)) / sample_bytes))
        models, pre, decoders, trainers = (
            getattr(backend_module, m) for m in ("models", "pre_tokenizers", "decoders", "trainers")
        )
        backend = backend_module.Tokenizer(models.BPE())
        # A run without a break (base64, a megabyte of letters) is cut first: merges cost the square of its length.
        cut = pre.Split(backend_module.Regex(rf"\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}"), "isolated")
        backend.pre_tokenizer = pre.Sequence(
            [cut, pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
            initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        )
        sample = texts[::step]
        backend.train_from_iterator(
            [*sample, *[" " + " ".join(whole)] * (1 + sum(map(len, sample)) // 2500)] if whole else sample, trainer
        )
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`, or the one in a folder."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{path}: no such tokenizer file; give a tokenizer.json or a run folder that holds one")
        try:
            backend = _tokenizers().Tokenizer.from_file(str(path))
        except Exception as err:  # the library raises a bare Exception
            raise InputError(
                f"{path}: not a tokenizer.json ({str(err).splitlines()[0]}); train it again with `minglm train "
                f"--overwrite`"
            ) from None
        return cls(backend)

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json."""
        atomic.write_text(path, self.to_json(), durable=True)

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return self._backend.to_str(pretty=True)

    @property
    def sha256(self) -> str:
        """Hash of tokenizer.json."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Ids in use; a model's vocabulary may be larger, never smaller."""
        return self._backend.get_vocab_size()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`. Special tokens written out in the text are plain text unless `special`.

        Raises:
            InputError: half a character in it, which a shell makes of bytes that are no UTF-8.
        """
        self._backend.encode_special_tokens = not special
        try:
            return self._backend.encode(text).ids
        except TypeError:
            raise InputError(f"text {ascii(text)[:60]}: is not Unicode (half a character); give UTF-8 text") from None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Like `encode` for many texts at once, on all cores."""
        self._backend.encode_special_tokens = True
        return [e.ids for e in self._backend.encode_batch(texts)]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of token ids; special tokens are left out unless `special`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def token(self, index: int) -> str:
        """The text of one token, special tokens by name."""
        return self._backend.decode([int(index)], skip_special_tokens=False)

    def token_bytes(self, index: int) -> bytes:
        """The bytes that one token adds to the text; none for a special token or an id that is not in use.

        Joined, the bytes of an answer's tokens decode to its text, also where a character is spread over several.
        """
        text = None if int(index) in self._special else self._backend.id_to_token(int(index))
        if text is None:
            return b""
        if self._byte_level and all(c in _BYTE_OF for c in text):
            return bytes(_BYTE_OF[c] for c in text)
        return text.encode()


def _tokenizers():
    # The library warns on stderr when a process forks after it used threads; the loader forks nowhere, tests do.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        import tokenizers
    except ImportError:
        raise InputError(f"the package `tokenizers` is not installed; {datafiles.install_hint('train')}") from None
    return tokenizers
