"""The demo's report on what the toy can do: the scorecard with its baselines, and the distance to the floor."""

from __future__ import annotations

from minglm import plots
from sim.report.html import Page, table


def section(page: Page, card: dict) -> None:
    """Scorecard, loss above the floor by what a token needs, and n-gram tables beside the model."""
    page.heading("What it can do, beside what needs no skill", "scorecard")
    page.add(
        table(
            ["", "question", "right", "95% interval", "of", "without the skill"],
            [
                [
                    row["group"],
                    row["name"],
                    f"{row['rate']:.0%}",
                    "{:.0%} to {:.0%}".format(*row["interval"]),
                    row["total"],
                    ", ".join(f"{rule} {share:.0%}" for rule, share in row["rules"].items()),
                ]
                for row in card["rows"]
            ],
            f"Names, codes, sums and wordings that training never showed; recall in passages of {card['length']} "
            "tokens. An answer is right when all of it is. The last column is what simple rules reach on the same "
            "questions. Stories and unseen text are those of the model before chat training.",
        )
    )
    parts = {name: part for name, part in card["floor"].items() if name != "all"}
    fig = plots.figure("Loss above the floor, by what a token needs", "", "nats a token")
    plots.bars(fig, list(parts), [part["floor"] for part in parts.values()], "the floor", 0)
    plots.bars(fig, list(parts), [max(0.0, part["above"]) for part in parts.values()], "above it", 1)
    fig.update_layout(barmode="stack")
    whole = card["floor"]["all"]
    page.figure(
        fig,
        f"The generator knows how probable each token of its texts is. Of {whole['loss']:.3f} nats a token on unseen "
        f"text {whole['floor']:.3f} are chance that nobody can foretell, {whole['above']:.3f} are left to learn: "
        + ", ".join(f"{name} {part['above']:.3f} ({part['share']:.0%} of the tokens)" for name, part in parts.items())
        + ".",
    )
    page.add(
        table(
            ["next token of unseen text", "right", "loss (nats)"],
            [[name, f"{q['accuracy']:.1%}", f"{q['loss']:.3f}"] for name, q in card["counts"].items()],
            f"The tables are counted on {card['counted_tokens']:,} tokens of this model's own training text.",
        )
    )


def needles(page: Page, needle: dict) -> None:
    """The needle map with its control and the rules beside it."""
    page.heading("Does it use its context? The needle test", "needle")
    best, share = max(needle["rules"].items(), key=lambda item: item[1])
    page.figure(
        plots.heatmap(
            f"Whole sentences right among {needle['facts']} unseen facts, by depth and length",
            "prompt length (tokens)",
            "depth of the needle (0 = beginning)",
            [[100 * v for v in row] for row in needle["accuracy"]],
            unit="% right",
            x_labels=[str(n) for n in needle["lengths"]],
            y_labels=[str(d) for d in needle["depths"]],
            text=True,
            zmin=0,
            zmax=100,
        ),
        f"{needle['per_cell']} questions a cell about names and codes that training never showed, among "
        f"{needle['facts']} facts in a story. An answer is right when the whole sentence is, name and code: "
        f"{needle['with_context']:.1%} of {needle['questions']}. The same questions without the fact: "
        f"{needle['without_context']:.1%}; a rule that reads no question ({best}), given the name for nothing: "
        f"{share:.1%}.",
    )
    page.add(
        table(
            ["length", "depth", "question", "right", "the model said"],
            [[e["length"], e["depth"], e["question"], e["right"], e["answer"][:80]] for e in needle["examples"]],
        )
    )
