"""`minglm workshop slides --deck`: the half day as slides proper, one idea each, with notes for the speaker.

The text is `minglm/course/assets/half_day.md`: a heading begins a slide, `picture: NAME` names a function of
`PICTURES`, "- " a line to be seen, "> " a note that the key n shows. Figures in braces are filled in when the slides
are made: those of the model by arithmetic, those of the cluster from `clustersim run`, curves from data/reference.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minglm import atomic, datafiles, plots
from minglm.config import ModelConfig
from minglm.course import assets, curves
from minglm.errors import InputError, nearest

GLM5 = ModelConfig.named("glm5")
SCENARIO = "glm5_100k_910b"
Picture = tuple[Any, str]


@dataclass
class Slide:
    """One idea: a title, the name of a picture or "", lines to be seen, and the speaker's notes."""

    title: str
    picture: str = ""
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def slides(text: str) -> list[Slide]:
    """The slides of a deck's source.

    Raises:
        InputError: a line that belongs to no slide or is of no kind.

    >>> [(s.title, s.lines, s.notes) for s in slides("# A\\n- b\\n> c\\n")]
    [('A', ['b'], ['c'])]
    """
    out: list[Slide] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("# "):
            out.append(Slide(line[2:].strip()))
        elif line.strip() and not out:
            raise InputError(f"deck line {number}: text before the first slide; begin with '# Title'")
        elif line.startswith("picture: "):
            out[-1].picture = line[9:].strip()
        elif line.startswith(("- ", "> ")):
            (out[-1].lines if line[0] == "-" else out[-1].notes).append(line[2:].strip())
        elif line.strip():
            raise InputError(f"deck line {number}: {line[:40]!r}: begin with '# ', 'picture: ', '- ' or '> '")
    return out


def _mha_bytes() -> int:
    """Bytes of a token's keys and values of every head and layer, bf16."""
    return GLM5.num_attention_heads * (GLM5.qk_head_dim + GLM5.v_head_dim) * 2 * GLM5.num_hidden_layers


def _bars(title: str, unit: str, values: dict[str, float], form: str = "{:,.0f}") -> Picture:
    fig = plots.figure(title, "", unit)
    plots.bars(fig, list(values), list(values.values()), text=[form.format(v) for v in values.values()])
    return fig, f"Bar chart, {unit}: " + ", ".join(f"{k} {form.format(v)}" for k, v in values.items()) + "."


def _parts(_: dict) -> Picture:
    parts = GLM5.params_breakdown()
    names = ("routed_experts", "attention", "shared_experts", "embedding", "head", "dense_ffn", "indexer")
    return _bars("Parameters of GLM-5", "billion", {n.replace("_", " "): parts[n] / 1e9 for n in names}, "{:,.1f}")


def _active(_: dict) -> Picture:
    return _bars("GLM-5", "billion parameters", {"all": GLM5.num_params() / 1e9, "used by one token": _active_b()})


def _active_b() -> float:
    return GLM5.num_active_params() / 1e9


def _curve(_: dict) -> Picture:
    return curves.beside_the_band("pretrain", {})


def _cache(_: dict) -> Picture:
    context = GLM5.max_position_embeddings
    groups = _mha_bytes() * 8 // GLM5.num_attention_heads
    sizes = {"every head": _mha_bytes(), "8 groups": groups, "MLA": GLM5.kv_cache_bytes_per_token()}
    return _bars(f"Cache of {context:,} tokens", "GB", {k: b * context / 1e9 for k, b in sizes.items()})


def _latent(_: dict) -> Picture:
    sizes = {"every head": _mha_bytes(), "MLA": GLM5.kv_cache_bytes_per_token()}
    return _bars("One token in all layers", "bytes", {k: float(v) for k, v in sizes.items()})


def _keys(_: dict) -> Picture:
    lengths = [2**i for i in range(9, 18)]
    fig = plots.figure("Attention of GLM-5, forward", "tokens", "GFLOPs for one token", log_x=True)
    for i, (name, sparse) in enumerate((("all keys", False), (f"{GLM5.index_topk:,} keys", True))):
        plots.line(fig, lengths, [GLM5.flops_breakdown(n, sparse)["attention"] / 1e9 for n in lengths], name, i)
    scores = [GLM5.flops_breakdown(n)["indexer"] / 1e9 for n in lengths]
    plots.line(fig, lengths, scores, "the indexer's scores", 2)
    return fig, (
        f"Line chart. All keys: growing with the length. {GLM5.index_topk:,} keys: level. The indexer grows too, to "
        f"{scores[-1]:.1f} GFLOPs at {lengths[-1]:,} tokens. At the widths of single heads."
    )


def _days(projection: dict) -> Picture:
    days = projection["days"]
    ends = {"5 of 100 draws": days["low"], "middle": days["value"], "95 of 100 draws": days["high"]}
    return _bars(f"Days of {SCENARIO}", "days", ends)


PICTURES: dict[str, Callable[[dict], Picture]] = {
    "parts": _parts,
    "active": _active,
    "curve": _curve,
    "cache": _cache,
    "latent": _latent,
    "keys": _keys,
    "days": _days,
}


def project() -> dict:
    """What `clustersim run` answers to the half day's question, by its command: the model half does not import sim.

    Raises:
        InputError: the command failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "sim", "run", SCENARIO, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"clustersim run {SCENARIO}: {done.stderr.strip()}; mend that first")
    return json.loads(done.stdout)


def figures(projection: dict) -> dict[str, str]:
    """Name in braces → figure."""
    mha, latent = _mha_bytes(), GLM5.kv_cache_bytes_per_token()
    days, rent = projection["days"], projection["cost"]["rent"]
    return {
        "active_b": f"{_active_b():.0f}",
        "total_b": f"{GLM5.num_params() / 1e9:.0f}",
        "context": f"{GLM5.max_position_embeddings:,}",
        "mha_bytes": f"{mha:,}",
        "latent_bytes": f"{latent:,}",
        "ratio": f"{mha / latent:.0f}",
        "tokens": f"{projection['tokens'] / 1e12:.1f}",
        "days": f"{days['value']:.0f}",
        "days_low": f"{days['low']:.0f}",
        "days_high": f"{days['high']:.0f}",
        "rent": f"{rent['value'] / 1e6:.0f}",
        "rent_low": f"{rent['low'] / 1e6:.0f}",
        "rent_high": f"{rent['high'] / 1e6:.0f}",
        "bubble": f"{100 * projection['step']['bubble_fraction']:.0f}",
    }


def page(text: str, projection: dict) -> str:
    """A deck's source as one HTML page that opens without a network.

    Raises:
        InputError: a picture or a figure that is not known.
    """
    known, body, drawn = figures(projection), [], False
    for slide in slides(text):
        filled = [_filled(line, known) for line in (*slide.lines, *slide.notes)]
        seen, notes = filled[: len(slide.lines)], filled[len(slide.lines) :]
        picture = ""
        if slide.picture.startswith("file:"):
            path = datafiles.data("figures", slide.picture[5:])
            if path.is_file():
                drawing = path.read_text(encoding="utf-8")
                picture = f"<figure>{drawing[drawing.index('<svg') :]}</figure>"
            elif datafiles.root():  # an installation goes without the README's pictures
                raise InputError(f"deck: {path}: no such picture; restore it with git checkout")
        elif slide.picture:
            if slide.picture not in PICTURES:
                hint = nearest(slide.picture, PICTURES)
                raise InputError(f"deck: picture {slide.picture!r}: not one of {', '.join(PICTURES)}{hint}")
            fig, words = PICTURES[slide.picture](projection)
            plots.label_log_axes(fig)
            picture, drawn = plots.html(fig, words, first=not drawn), True
        body.append(
            f'<section class="slide"><h1>{html.escape(slide.title)}</h1>{picture}'
            f"<ul>{''.join(f'<li>{line}</li>' for line in seen)}</ul>"
            f'<aside class="notes">{"".join(f"<p>{note}</p>" for note in notes)}</aside></section>'
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>minglm: the half day</title>'
        f"<style>\n{assets.read('slides.css')}{assets.read('deck.css')}</style></head><body>{''.join(body)}"
        f"<div id='place'></div><script>\n{assets.read('slides.js')}"
        "document.addEventListener('keydown',e=>{if(e.key==='n')document.body.classList.toggle('with-notes')});"
        "</script></body></html>"
    )


def _filled(line: str, known: dict[str, str]) -> str:
    """A line with its figures, code in <code>, safe as HTML."""
    for name in re.findall(r"\{(\w+)\}", line):
        if name not in known:
            raise InputError(f"deck: figure {{{name}}}: not one of {', '.join(known)}{nearest(name, known)}")
        line = line.replace(f"{{{name}}}", known[name])
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(line, quote=False))


def write(folder: Path) -> Path:
    """Write the half day's deck into `folder`; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "half_day.deck.html"
    atomic.write_text(target, page(assets.read("half_day.md"), project()))
    return target
