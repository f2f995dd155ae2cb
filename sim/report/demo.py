"""The report of `make demo`: the toy that was just trained on this machine, and the projection of its big sister.

    clustersim report runs/demo        → runs/demo/report.html (self-contained) and runs/demo/picture.svg

Everything on the page is read from the run folder or computed by the simulator while the page is written.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from minglm import datafiles, plots
from minglm.config import ModelConfig
from minglm.errors import InputError
from sim.report import demo_rollouts, demo_scorecard
from sim.report import projection as report
from sim.report.html import Page, cards, escape, table
from sim.study.projection import project_file

STAGE_NAMES = {
    "pretrain": "pre-training",
    "long_context": "longer context",
    "dsa_warmup": "DSA warm-up",
    "sparse": "sparse",
    "sft": "chat (SFT)",
}


def _read(run_dir: Path, name: str) -> dict:
    path = run_dir / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: not there, so the demo has not finished; run `minglm demo --run {run_dir}` first, it resumes"
        ) from None
    except json.JSONDecodeError as err:
        raise InputError(
            f"{path}: not readable ({err}); delete it and run `minglm demo --run {run_dir}` again"
        ) from None


def rows_of(path: Path) -> list[dict[str, float | None]]:
    """A metrics CSV as rows of numbers; an empty cell is None."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: float(v) if v not in ("", None) else None for k, v in row.items()} for row in csv.DictReader(file)]


def build(run_dir: Path, scenario: Path | None = None) -> Path:
    """Write report.html and picture.svg into `run_dir`; returns the page's path.

    Raises:
        InputError: the folder holds no finished demo.
    """
    demo = _read(run_dir, "demo")
    needle, choice, cost, samples, card = (
        _read(run_dir, name) for name in ("needle", "indexer_recall", "cost_by_length", "samples", "scorecard")
    )
    metrics = {stage: rows_of(run_dir / stage / "metrics.csv") for stage in demo["stages"]}
    projection = project_file(scenario or datafiles.data("scenarios", "glm5_100k_910b.yaml"))
    page = Page(
        "A small GLM-5, trained here — and its big sister on 100,000 chips",
        f"A {demo['params'] / 1e6:.1f}M-parameter model with the architecture of GLM-5 was trained end to end on "
        "this machine. "
        "The same configuration object, at full size, then went through the cluster simulator.",
    )
    toy, glm5 = ModelConfig.from_dict(demo["config"]), ModelConfig.named("glm5")
    days = projection["days"]
    page.add(
        cards(
            [
                (
                    f"{card['floor']['all']['above']:.2f} nats",
                    f"above the floor of the language on unseen text; knowing nothing is "
                    f"{demo['ln_vocab'] - card['floor']['all']['floor']:.2f} above it",
                ),
                (
                    f"{needle['with_context']:.0%} vs {max(needle['rules'].values()):.0%}",
                    f"of whole sentences right among {needle['facts']} facts, and by a rule that reads no question",
                ),
                (
                    f"{demo['seconds'] / 60:.1f} min",
                    f"of training for {sum(s['tokens'] for s in demo['stages'].values()) / 1e6:.1f}M tokens on "
                    f"{demo['cpu']}",
                ),
                (
                    f"{days['value']:.0f} days",
                    f"projected for 28.5T tokens on 100,000 Ascend 910B (range {days['low']:.0f}–{days['high']:.0f})",
                ),
            ]
        )
    )
    _sizes(page, toy, glm5)
    _loss(page, demo, metrics, card)
    _experts(page, run_dir, metrics)
    _indexer(page, choice)
    _cost(page, cost)
    demo_scorecard.needles(page, needle)
    demo_scorecard.section(page, card)
    _samples(page, samples)
    demo_rollouts.section(page, run_dir)
    _projection(page, projection)
    page.heading("Make it again", "again")
    page.prose(
        "Every figure above is read from this folder or computed while this page was written. `minglm demo` resumes "
        "or says that it is "
        "done; `minglm demo --overwrite` starts over. Settings, seeds and versions are in each stage's folder."
    )
    page.add(table(["package", "version"], sorted(demo["versions"].items())))
    _picture(run_dir, demo, metrics, needle, card, projection)
    return page.write(run_dir / "report.html")


def _sizes(page: Page, toy: ModelConfig, glm5: ModelConfig) -> None:
    page.heading("Two sizes of one model", "sizes")
    page.prose("Both columns are one class with different numbers, and both go through the same arithmetic.")
    rows = []
    for label, value in (
        ("parameters", lambda c: f"{c.num_params():,}"),
        ("of them active for one token (with head)", lambda c: f"{c.num_active_params():,}"),
        ("layers (dense first)", lambda c: f"{c.num_hidden_layers} ({c.first_k_dense_replace})"),
        ("experts, chosen", lambda c: f"{c.n_routed_experts}, {c.num_experts_per_tok}"),
        ("keys a query may read (index_topk)", lambda c: f"{c.index_topk:,}"),
        ("context", lambda c: f"{c.max_position_embeddings:,}"),
        ("KV cache, bf16 bytes per token", lambda c: f"{c.kv_cache_bytes_per_token('bf16'):,}"),
        ("indexer keys, bf16 bytes per token", lambda c: f"{c.indexer_cache_bytes_per_token('bf16'):,}"),
        ("training FLOPs per token at 4,096 tokens", lambda c: f"{c.train_flops_per_token(4096):.3g}"),
    ):
        rows.append([label, value(toy), value(glm5)])
    page.add(table(["", "the toy, here", "GLM-5"], rows))


def _loss(page: Page, demo: dict, metrics: dict, card: dict) -> None:
    page.heading("It learned", "loss")
    fig = plots.figure("Training loss through all stages", "tokens seen (millions)", "loss (nats per token)")
    seen = 0.0
    end = sum(s["tokens"] for s in demo["stages"].values()) / 1e6
    for i, (stage, rows) in enumerate(metrics.items()):
        per_step = demo["stages"][stage]["tokens"] / len(rows) / 1e6
        plots.line(
            fig,
            [seen + (n + 1) * per_step for n in range(len(rows))],
            [r["lm_loss"] for r in rows],
            STAGE_NAMES[stage],
            i,
        )
        seen += len(rows) * per_step
    fig.add_hline(
        y=demo["ln_vocab"],
        line_dash="dot",
        line_color="#555",
        annotation_text=f"ln V = {demo['ln_vocab']:.2f}: knowing nothing",
        annotation_position="top right",
    )
    floor = card["floor"]["all"]["floor"]
    fig.add_hline(
        y=floor,
        line_dash="dot",
        line_color="#555",
        annotation_text=f"{floor:.2f}: the floor of the language",
        annotation_position="bottom right",
    )
    recorded = datafiles.data("reference", "demo_pretrain.csv")
    if demo["size"] == "mini" and recorded.exists():
        reference = rows_of(recorded)
        per_step = demo["stages"]["pretrain"]["tokens"] / len(metrics["pretrain"]) / 1e6
        fig.add_scatter(
            x=[r["step"] * per_step for r in reference],
            y=[r["lm_loss"] for r in reference],
            name="reference run (pre-training)",
            mode="lines",
            line=dict(color="#999", width=5),
            opacity=0.5,
        )
        fig.data = (fig.data[-1], *fig.data[:-1])
    fig.update_xaxes(range=[0, end * 1.02])
    page.figure(
        fig,
        f"Loss against tokens for the five stages. It starts near ln V = {demo['ln_vocab']:.2f}. The first valley "
        "is a lesson of its own: "
        "pairs of words that come again, for looking back. Then text begins, which the model has never seen, so the "
        "loss leaps up before it falls. The generator knows the probability of every token: nothing can do better than "
        f"{floor:.2f} nats a token on such text, on average. "
        "The chat stage counts the assistant's words only, which is another and easier question."
        + (
            " The grey band is a recorded run of the same recipe: yours should lie close to it."
            if demo["size"] == "mini" and recorded.exists()
            else ""
        ),
    )
    page.add(
        table(
            ["stage", "steps", "tokens", "sequence", "first loss", "last loss", "validation loss", "tokens/s"],
            [
                [
                    STAGE_NAMES[s],
                    v["steps"],
                    f"{v['tokens']:,}",
                    v["seq_len"],
                    f"{v['first_loss']:.3f}",
                    f"{v['last_loss']:.3f}",
                    "—" if v["val_loss"] is None else f"{v['val_loss']:.3f}",
                    f"{v['tokens_per_s']:,}",
                ]
                for s, v in demo["stages"].items()
            ],
            "Validation is on texts that training never saw. The warm-up trains the indexer only, so its loss is "
            "that of a frozen model.",
        )
    )


def _experts(page: Page, run_dir: Path, metrics: dict) -> None:
    page.heading("Experts share the work", "experts")
    table = [{k: v or 0.0 for k, v in r.items()} for r in rows_of(run_dir / "pretrain" / "expert_load.csv")]
    layers = sorted({int(r["layer"]) for r in table})
    layer = layers[len(layers) // 2]
    rows = [r for r in table if int(r["layer"]) == layer]
    experts = [k for k in rows[0] if k not in ("step", "layer")]
    total = [sum(r[e] for e in experts) for r in rows]
    shares = [[100 * r[e] / t for r, t in zip(rows, total, strict=True)] for e in experts]
    even = 100 / len(experts)
    page.figure(
        plots.heatmap(
            f"Load of each expert in layer {layer} over pre-training",
            "step",
            "expert",
            shares,
            unit="% of tokens",
            x_labels=[int(r["step"]) for r in rows],
            zmin=0,
            zmax=2 * even,
        ),
        f"Share of the routed tokens that each of {len(experts)} experts received; an even load is {even:.1f}%. The "
        "balance bias moves "
        "after each step, up for the underloaded and down for the overloaded.",
    )
    fig = plots.figure("How uneven: the busiest expert against the mean", "pre-training step", "max / mean load")
    plots.line(
        fig,
        [r["step"] for r in metrics["pretrain"]],
        [r["load_max_over_mean"] for r in metrics["pretrain"]],
        "max / mean",
        0,
    )
    fig.add_hline(y=1, line_dash="dot", line_color="#555", annotation_text="perfectly even")
    page.figure(
        fig,
        "The load of the busiest expert divided by the mean load, averaged over layers. 1 is perfectly even. No "
        "token was dropped: "
        f"{sum(r['dropped_tokens'] or 0 for r in metrics['pretrain']):.0f} in all of pre-training.",
    )


def _indexer(page: Page, choice: dict) -> None:
    page.heading("What the indexer chose, and where attention looked", "indexer")
    k = choice["index_topk"]
    attention = [[v if s <= t else None for s, v in enumerate(row)] for t, row in enumerate(choice["attention"])]
    ceiling = sorted(v for row in choice["attention"][k:] for v in row if v > 0)[-max(1, len(choice["attention"]))]
    page.figure(
        plots.heatmap(
            f"Attention of layer {choice['layer']} (mean over heads), on an unseen file",
            "key position",
            "query position",
            attention,
            unit="share",
            zmin=0,
            zmax=ceiling,
            height=520,
        ),
        "Where dense attention looks: one row a query, one column a key.",
    )
    chosen = [[v if s <= t else None for s, v in enumerate(row)] for t, row in enumerate(choice["chosen"])]
    page.figure(
        plots.heatmap(
            f"The {k} keys that the indexer chose for each query",
            "key position",
            "query position",
            chosen,
            unit="chosen",
            zmin=0,
            zmax=1,
            height=520,
        ),
        f"1 where a key was chosen. The first {k} queries see at most {k} keys and take them all.",
    )
    fig = plots.figure(f"Attention captured by {k} keys", "layer", "share of the attention (%)")
    names = {"best": "the best possible keys", "indexer": "the indexer's choice", "recent": f"the {k} most recent keys"}
    for i, (key, name) in enumerate(names.items()):
        plots.bars(
            fig,
            [f"layer {row['layer']}" for row in choice["layers"]],
            [100 * row[key] for row in choice["layers"]],
            name,
            i,
        )
    fig.update_layout(barmode="group")
    fig.update_yaxes(range=[0, 100])
    page.figure(
        fig,
        "For queries that see more keys than they may read: how much of the dense attention the chosen keys would "
        "have received. "
        "The indexer should lie between taking the most recent keys and an oracle that has seen the attention.",
    )


def _cost(page: Page, cost: dict) -> None:
    page.heading("What sparsity costs and saves, by length", "cost")
    lengths = [r["length"] for r in cost["rows"]]
    fig = plots.figure(
        "One attention layer, forward, on this machine", "sequence length (tokens)", "time per token (µs)", log_x=True
    )
    plots.line(
        fig, lengths, [1e6 * r["dense_s"] / r["length"] for r in cost["rows"]], "dense attention", 0, markers=True
    )
    plots.line(
        fig,
        lengths,
        [1e6 * r["sparse_s"] / r["length"] for r in cost["rows"]],
        f"sparse, k = {cost['index_topk']}, with its indexer",
        1,
        markers=True,
    )
    fig.update_yaxes(rangemode="tozero")
    last = cost["rows"][-1]
    page.figure(
        fig,
        "Time per token, measured side by side. Dense attention grows with the length; sparse attention reads "
        f"{cost['index_topk']} keys "
        f"whatever the length, and only its light indexer grows. At {last['length']:,} tokens dense takes "
        f"{last['dense_over_sparse']:.2f}× "
        "the time of sparse"
        + (
            ": at these lengths gathering costs a laptop more than it saves, although the FLOPs below already favour "
            "sparse. `make bench` finds the length where it wins."
            if last["dense_over_sparse"] < 1
            else "."
        ),
    )
    page.add(
        table(
            ["length", "dense, FLOPs per token", "sparse, FLOPs per token", "time: dense / sparse"],
            [
                [
                    f"{r['length']:,}",
                    f"{r['dense_flops']:,.0f}",
                    f"{r['sparse_flops']:,.0f}",
                    f"{r['dense_over_sparse']:.2f}",
                ]
                for r in cost["rows"]
            ],
            "FLOPs of scores, values and indexer by arithmetic; the ratio of times as measured.",
        )
    )


def _samples(page: Page, samples: dict) -> None:
    page.heading("What it writes", "samples")
    page.prose("Continuations of four titles by the model before chat training, then four questions to the chat model.")
    for sample in samples["samples"]:
        arrow = " → " if sample["kind"] == "chat" else ""
        text = re.sub("\n{3,}", "\n\n", sample["text"])
        page.add(f"<pre><b>{escape(sample['prompt'])}</b>{arrow}{escape(text)}</pre>")


def _projection(page: Page, p: dict) -> None:
    """The same sections as a projection's own page, after a word on why the bubble decides."""
    plan, step = p["plan"], p["step"]
    report.section(page, p)
    page.prose(
        f"A batch of {plan['tokens_per_step'] / 1e6:.1f}M tokens gives each of {plan['dp']} replicas only "
        f"{plan['micro_batches_per_replica']} "
        f"micro-batches, so {step['bubble_fraction']:.0%} of the pipeline's time is idle: at this size the bubble "
        "decides. A week at 35% MFU is "
        "often quoted for such a run; that is an assumption put in, not a projection that comes out. How wrong the "
        "simulator is on runs that "
        "others measured: `clustersim validate` prints every row with its error."
    )


def _picture(run_dir: Path, demo: dict, metrics: dict, needle: dict, card: dict, projection: dict) -> None:
    """picture.svg, for the README: what was learnt, what was found, what the big one would take."""
    rows = metrics["pretrain"]
    plots.static_svg(
        run_dir / "picture.svg",
        [
            {
                "title": "The toy: looking back first, then text",
                "x": "pre-training step",
                "y": "loss (nats per token)",
                "lines": [
                    ("training loss", [r["step"] for r in rows], [r["lm_loss"] for r in rows]),
                    ("ln V: knowing nothing", [1, rows[-1]["step"]], [demo["ln_vocab"]] * 2),
                    ("the floor of the language", [1, rows[-1]["step"]], [card["floor"]["all"]["floor"]] * 2),
                ],
            },
            {
                "title": f"…finds 1 of {needle['facts']} unseen facts (% right)",
                "x": "prompt length (tokens)",
                "y": "depth (0 = beginning)",
                "unit": "% right",
                "image": [[100 * v for v in row] for row in needle["accuracy"]],
                "x_labels": needle["lengths"],
                "y_labels": needle["depths"],
                "range": (0, 100),
            },
            _timeline(projection),
            _prices(projection),
        ],
        size=(11, 7.4),
        rows=2,
    )


def _timeline(projection: dict) -> dict:
    """The phases of the big run one after the other, and what failures add, in days."""
    spans, at = [], 0.0
    for name, phase in projection["campaign"]["phases"].items():
        spans.append((name, at, at + phase["ideal_days"], None))
        at += phase["ideal_days"]
    days = projection["days"]
    spans.append(("failures and waits", at, days["value"], None))
    spans.append(("end, 90% range", days["low"], days["high"], days["value"]))
    title = f"GLM-5 on {projection['cluster']['cluster_chips']:,} chips: {days['value']:.0f} days"
    return {"title": title, "x": "days", "y": "", "spans": spans}


def _prices(projection: dict) -> dict:
    """What the run costs, in millions of dollars, each with its 90% range."""
    names = {"rent": "rented", "own": "owned: capital,\nelectricity"}
    costs = [(names[key], projection["cost"][key]) for key in names if key in projection["cost"]]
    spans = [(name, *(cost[end] / 1e6 for end in ("low", "high", "value"))) for name, cost in costs]
    return {"title": "…and what it costs (range: 90% of draws)", "x": "million US dollars", "y": "", "spans": spans}
