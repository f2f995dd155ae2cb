"""Drawn diagrams (SVG, no JavaScript): the whole model in one picture, and where MLA's cache sits.

Every number in a diagram is read from the `ModelConfig` it is given.
"""

from __future__ import annotations

from html import escape

from minglm.config import ModelConfig

BLUE, ORANGE, GREEN, PINK, GREY = "#cfe3f5", "#fbe3b5", "#c5ead9", "#f3d6e5", "#eeeeee"
INK = "#222222"


def _text(x: float, y: float, words: str, size: int = 14, weight: str = "normal", anchor: str = "middle") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{INK}">{escape(words)}</text>'
    )


def _box(
    x: float,
    y: float,
    w: float,
    h: float,
    lines: tuple[str, ...] = (),
    fill: str = GREY,
    size: int = 14,
    dash: bool = False,
) -> str:
    """A rounded box with centred lines, the first one bold."""
    dashes = ' stroke-dasharray="6 4"' if dash else ""
    out = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{fill}" stroke="#555"{dashes}/>'
    top = y + h / 2 - (len(lines) - 1) * size * 0.65 + size * 0.35
    for i, line in enumerate(lines):
        out += _text(
            x + w / 2, top + i * size * 1.3, line, size if i == 0 else size - 2, "bold" if i == 0 else "normal"
        )
    return out


def _arrow(*points: tuple[float, float]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="#444" stroke-width="1.6" marker-end="url(#tip)"/>'


def _svg(width: int, height: int, title: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="100%" '
        f'style="max-width:{width}px" role="img" '
        f'aria-label="{escape(title, quote=True)}" font-family="Helvetica, Arial, sans-serif">'
        '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z" fill="#444"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="white"/>{body}</svg>'
    )


def model_diagram(config: ModelConfig, name: str = "GLM-5") -> str:
    """The whole model: the stack on the left, one of its layers opened on the right."""
    c, n = config, config.num_hidden_layers
    body = _text(
        20,
        30,
        f"{name}: {config.num_params() / 1e9:,.1f}B parameters"
        if config.num_params() > 1e9
        else f"{name}: {config.num_params() / 1e6:,.2f}M parameters",
        18,
        "bold",
        "start",
    )
    # ---- the stack, bottom to top
    body += _box(20, 500, 210, 40, ("tokens",), GREY)
    body += _box(20, 430, 210, 46, ("embedding", f"{c.vocab_size:,} × {c.hidden_size:,}"), GREY)
    for shift in (12, 6, 0):
        body += _box(20 + shift, 236 - shift, 198, 160, (), "white")
    body += _box(
        20,
        236,
        198,
        160,
        (
            f"{n} layers",
            f"{c.first_k_dense_replace} with a dense feed-forward,",
            f"then {c.num_moe_layers} with experts",
        ),
        BLUE,
    )
    body += _box(20, 150, 210, 46, ("norm and head", f"a score for each of {c.vocab_size:,}"), GREY)
    body += _box(20, 80, 210, 40, ("next token",), GREY)
    for low, high in ((500, 478), (430, 398), (224, 198), (150, 122)):
        body += _arrow((119, low), (119, high))
    body += '<path d="M224,300 L440,66 M224,380 L440,540" stroke="#999" stroke-dasharray="4 4" fill="none"/>'
    if c.num_nextn_predict_layers:
        body += _box(
            262, 128, 150, 90, ("MTP", "one more layer,", "guesses the tokens", "after the next"), PINK, 14, dash=True
        )
        body += _arrow((236, 270), (337, 270), (337, 220)) + _arrow((262, 173), (232, 173))
    # ---- one layer, opened
    body += _box(440, 60, 520, 484, (), "#fafafa")
    body += _text(456, 84, "one layer", 15, "bold", "start")
    body += _box(462, 330, 476, 190, (), BLUE) + _text(478, 352, "Attention: MLA + DSA", 15, "bold", "start")
    body += _box(
        478,
        440,
        200,
        62,
        ("latent", f"{c.kv_lora_rank} + {c.qk_rope_head_dim} numbers", "kept of each past token"),
        "white",
    )
    body += _box(
        722, 440, 200, 62, ("lightning indexer", f"{c.index_n_heads} small heads score", "every past token"), ORANGE
    )
    body += _box(
        540,
        366,
        320,
        46,
        (f"{c.num_attention_heads} heads", f"read the best {c.index_topk:,} past tokens only"),
        "white",
    )
    body += _arrow((578, 440), (618, 414)) + _arrow((822, 440), (782, 414))
    body += _box(462, 106, 476, 180, (), GREEN) + _text(
        478, 128, "Feed-forward: mixture of experts", 15, "bold", "start"
    )
    body += _box(600, 232, 200, 40, ("router",), "white")
    wide = 30
    for i in range(8):
        fill = GREEN if i not in (1, 4) else ORANGE
        body += _box(496 + i * (wide + 8), 158, wide, 40, (), fill)
        if i in (1, 4):
            body += _arrow((700, 232), (496 + i * (wide + 8) + wide / 2, 200))
    body += _box(818, 158, 104, 40, ("shared",), ORANGE) + _arrow((870, 286), (870, 200))
    body += _text(
        648,
        150,
        f"{c.num_experts_per_tok} of {c.n_routed_experts} experts, and {c.n_shared_experts} shared, work on a token",
        12,
    )
    body += _arrow((700, 366), (700, 288)) + _arrow((700, 540), (700, 504)) + _arrow((700, 106), (700, 84))
    body += _text(712, 312, "+ what came in", 12, anchor="start") + _text(712, 98, "+ what came in", 12, anchor="start")
    return _svg(
        980,
        560,
        f"Diagram of {name}: tokens, embedding, {n} layers of sparse latent attention and experts, head, MTP",
        body,
    )


def latent_diagram(config: ModelConfig) -> str:
    """Multi-head latent attention: what is computed, what is cached (orange), what is rebuilt."""
    c = config
    wide = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
    body = _box(20, 110, 130, 60, ("token", f"{c.hidden_size:,} numbers"), GREY)
    body += _box(220, 40, 150, 60, ("squeeze", f"to {c.kv_lora_rank}"), "white") + _arrow(
        (150, 130), (185, 130), (185, 70), (218, 70)
    )
    body += _box(220, 180, 150, 60, ("rotary key", f"{c.qk_rope_head_dim} numbers"), "white") + _arrow(
        (150, 150), (185, 150), (185, 210), (218, 210)
    )
    body += _box(430, 24, 190, 232, (), ORANGE) + _text(525, 134, "the cache", 16, "bold")
    body += _text(
        525, 155, f"{c.kv_lora_rank} + {c.qk_rope_head_dim} = {c.kv_lora_rank + c.qk_rope_head_dim} numbers", 13
    )
    body += _text(525, 173, "a token and layer", 13)
    body += _box(446, 46, 158, 46, ("latent",), "white") + _box(446, 188, 158, 46, ("rotary key",), "white")
    body += _arrow((370, 70), (444, 70)) + _arrow((370, 210), (444, 210))
    body += _box(
        690, 40, 250, 60, (f"rebuild {wide:,} numbers", f"keys and values of {c.num_attention_heads} heads"), BLUE
    ) + _arrow((604, 70), (688, 70))
    body += _box(690, 180, 250, 60, ("attention", "every head uses the same rotary key"), BLUE)
    body += _arrow((815, 100), (815, 178)) + _arrow((604, 210), (688, 210))
    return _svg(
        960,
        280,
        "Diagram of multi-head latent attention: the token is squeezed to a latent and a rotary key, both cached, "
        "and keys and values of all heads are rebuilt from them",
        body,
    )


def show_svg(svg: str, alt: str) -> None:
    """Display a diagram with its text alternative below, as `minglm.course.notebook.show` does for a figure."""
    from IPython.display import SVG, Markdown, display

    display(SVG(svg), metadata={"image/svg+xml": {"alt": alt}})
    display(Markdown(f"*{alt}*"))
