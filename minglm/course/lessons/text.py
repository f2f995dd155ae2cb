"""Text as a reader sees it: tokens as coloured pieces."""

from __future__ import annotations

from html import escape

import torch

from minglm.data import corpus
from minglm.data.chat import encode_chat
from minglm.data.tiny_world.documents import MIXTURE
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.training.recipe import TINY_WORLD
from minglm.training.tiny_world import VALIDATION_SEED

FILLS = ("#cfe3f5", "#fbe3b5", "#c5ead9", "#f3d6e5")


def token_strip(text: str, tokenizers: dict) -> None:
    """Show `text` once for each entry, cut into its tokens; a tokenizer of None cuts into bytes.

    Colours only tell neighbours apart, and each piece has a border, so that the cut shows without colour too.
    """
    from IPython.display import HTML, display

    rows = []
    for name, tokenizer in tokenizers.items():
        if tokenizer is None:
            pieces = [chr(b) if 32 <= b < 127 or b == 10 else f"{b:02x}" for b in text.encode("utf-8")]
        else:
            pieces = [tokenizer.token(i) for i in tokenizer.encode(text)]
        spans = "".join(
            f'<span style="background:{FILLS[i % 4]};color:#111;border-left:1px solid #888">'
            f"{escape(p).replace(' ', '·').replace(chr(10), '↵<br>')}</span>"
            for i, p in enumerate(pieces)
        )
        rows.append(
            f'<p style="margin:10px 0 2px"><b>{escape(name)}</b>: {len(pieces)} pieces</p>'
            f'<div style="font:14px monospace;line-height:1.7">{spans}</div>'
        )
    display(HTML("".join(rows)))


def printable(text: str) -> str:
    """`text` with □ for each control or undecodable character but line end and tab: an untrained model draws those,
    and a terminal or browser would obey or swallow them.
    """
    return "".join(c if c in "\n\t" or (c.isprintable() and c != "\ufffd") else "□" for c in text)


def unseen_passages(tokenizer, recipe, length: int, count: int) -> list:
    """`count` windows of `length` tokens from the texts that `recipe`'s training holds back; (length,) each."""
    if recipe.corpus == TINY_WORLD:
        rows = TinyWorldLoader(count, length, VALIDATION_SEED, recipe.documents or MIXTURE, validation=True)
        return list(rows.batch(0).tokens)
    _, held_back = corpus.load(recipe.corpus, recipe.corpus_max_bytes).split()
    ids = [t for document in tokenizer.encode_batch([d.text for d in held_back]) for t in document]
    step = (len(ids) - length) // count
    return [torch.tensor(ids[i * step : i * step + length]) for i in range(count)]


def chat_strip(tokenizer, messages: tuple) -> None:
    """A conversation as its tokens: what the loss counts has a blue ground and is underlined, the rest is grey."""
    counted_strip(tokenizer, *encode_chat(tokenizer, messages))


def counted_strip(tokenizer, tokens, counted) -> None:
    """Tokens, and for each whether the loss counts it: blue and underlined where it does, else grey."""
    from IPython.display import HTML, display

    spans = []
    for token, own in zip(tokens, counted, strict=True):
        style = f"background:{FILLS[0]};border-bottom:3px solid #0072B2" if own else "background:#eee"
        words = escape(tokenizer.token(token)).replace(" ", "·").replace("\n", "↵")
        spans.append(f'<span style="{style};color:#111;border-left:1px solid #888;padding:0 1px">{words}</span>')
    display(HTML(f'<div style="font:14px monospace;line-height:2">{"".join(spans)}</div>'))
