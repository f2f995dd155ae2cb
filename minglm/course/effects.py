"""Which effects of the course are real: each beside its control, judged by the recorded trainings.

An effect is a number for each seed: what the thing has more than the best of its controls, trained or asked with the
same seed. It is called **real** when the 95% t-interval of its mean over the seeds lies above zero, **weak** when the
mean is in its favour and the interval holds zero, **withdrawn** when the mean is not in its favour. Nothing here is
written by hand: `python -m minglm.course.effects` reads the files of data/reference, and prints the table of
docs/effects.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minglm.course.labs import cleaning, sparse_twin, twins
from minglm.errors import Parser
from minglm.evals.statistics import mean_interval
from minglm.rl import abstention_control, measure
from minglm.tools import demo_seeds, induction, long_rows, qat_vs_ptq

Rows = list[dict[str, Any]]
POINTS, NATS, PERCENT, STEPS = "points", "nats", "%", "steps"
VERDICTS = ("real", "weak", "withdrawn")
_DIGITS = {POINTS: 1, NATS: 3, PERCENT: 0, STEPS: 0}  # after the point


@dataclass(frozen=True)
class Effect:
    """One claim: what it is measured against, and by how much it holds on each seed (positive: as claimed)."""

    claim: str
    control: str
    gains: list[float]
    unit: str
    command: str  # prints or makes its record, after `python -m minglm.`
    notebook: str  # that shows it with its control, in notebooks/learn

    @property
    def verdict(self) -> str:
        """real, weak or withdrawn."""
        mean, half = mean_interval(self.gains)
        return "withdrawn" if mean <= 0 else "real" if mean - half > 0 else "weak"

    @property
    def figure(self) -> str:
        """The mean with its interval, and how many trainings it is of."""
        mean, half = mean_interval(self.gains)
        digits = _DIGITS[self.unit]
        return f"{mean:+.{digits}f} (±{half:.{digits}f}) {self.unit}, {len(self.gains)} seeds"


def _by_seed(rows: Sequence[dict[str, Any]], value: str, **of: Any) -> dict[int, float]:
    """{seed: value} of the rows whose columns are as `of` says."""
    return {r["seed"]: r[value] for r in rows if all(r[key] == wanted for key, wanted in of.items())}


def _less(one: dict[int, float], other: dict[int, float], scale: float = 1.0) -> list[float]:
    """Seed by seed."""
    return [scale * (one[seed] - other[seed]) for seed in sorted(one)]


def _scorecard() -> Iterator[Effect]:
    rows, command = demo_seeds.read(), "tools.demo_seeds --summary data/reference/scorecard.csv"

    def beside(claim: str, control: str, notebook: str, **of: str) -> Effect:
        gains = _less(_by_seed(rows, "value", **of), _by_seed(rows, "rule_value", **of), 100)
        return Effect(claim, control, gains, POINTS, command, notebook)

    facts = "the best rule that reads no question"
    yield beside("finds the fact that was asked, among 4 in 512 tokens", facts, "10_evaluation", name="4 facts")
    yield beside("the same in 1,024 tokens", facts, "10_evaluation", name="4 facts, 1,024 tokens")
    for claim, known, absent in (
        ("answers, or says that the fact is absent, mean", "4 facts", "4 facts, absent"),
        ("tells known people's facts and refuses strangers, mean", "facts", "refusal"),
    ):
        told, refused = (_by_seed(rows, "value", name=name) for name in (known, absent))
        both = {seed: (told[seed] + refused[seed]) / 2 for seed in told}
        always = dict.fromkeys(both, 0.5)  # all of the one kind, none of the other
        yield Effect(claim, "always declining", _less(both, always, 100), POINTS, command, "10_evaluation")
    yield beside("the next token of unseen text", "n-gram tables and copying", "10_evaluation", name="next token right")
    keys = next(r["name"] for r in rows if r["group"] == "attention captured")
    rules = "the best of six rules that read no query"
    yield beside("the indexer's keys hold the attention", rules, "03_lightning_indexer", name=keys)
    for text in ("recall answers", "stories"):
        name = f"{text}, module"
        yield beside(
            f"the prediction module drafts {text}",
            "copying from the text",
            "06_mtp_and_speculative_decoding",
            name=name,
        )


def _pretraining() -> Iterator[Effect]:
    rows = long_rows.read()
    for first, end in long_rows.PLACES[1:]:
        long = _by_seed(rows, "above_floor", way=long_rows.LONG, first=first)
        short = _by_seed(rows, "above_floor", way=long_rows.SHORT, first=first)
        yield Effect(
            f"long rows help at tokens {first} to {end}",
            "as many tokens in short rows",
            _less(short, long),
            NATS,
            "tools.long_rows --summary data/reference/long_rows.csv",
            "08_long_context_and_the_needle",
        )
    yield Effect(
        f"{sparse_twin.KEYS} of {sparse_twin.LENGTH} keys cost less than {sparse_twin.ALLOWED} nats; left of these",
        "as many tokens of dense attention",
        [sparse_twin.ALLOWED - cost for cost in sparse_twin.costs(sparse_twin.read())],
        NATS,
        "course.labs.record sparse",
        "05_train_it",
    )
    pairs = twins.read()
    claims = {
        "dense twin less experts": (
            "experts in place of one feed-forward",
            "a dense twin, each at its own rates",
            "04_mixture_of_experts",
        ),
        "AdamW alone less Muon": ("Muon for the matrices", "AdamW alone, each at its own rates", "07_muon"),
    }
    for pair, (claim, control, notebook) in claims.items():
        yield Effect(claim, control, twins.difference(pairs, pair)[0], NATS, "course.labs.record twins", notebook)
    grown = induction.read()
    ends = {name: [r for r in grown if r["setting"] == name] for name in induction.SETTINGS}
    last = {name: {r["seed"]: r["loss"] for r in own} for name, own in ends.items()}  # a seed's last row stands last
    formed = {name: {r["seed"]: r["formed_at"] or r["step"] for r in own} for name, own in ends.items()}
    command, notebook = "tools.induction --summary data/reference/induction.csv", "22_how_a_model_learns_to_look_back"
    for setting, control in (("control", "rows that repeat nothing"), ("shallow", "one layer")):
        gains = _less(last[setting], last["wide"])
        yield Effect("looking back forms", control, gains, NATS, command, notebook)
    gains = _less(formed["narrow"], formed["wide"])
    yield Effect(
        "words that start far apart: it forms sooner", "words that start close", gains, STEPS, command, notebook
    )
    for experiment, text in (("copies", "near copies gone"), ("junk", "filtered")):
        losses = cleaning.losses(experiment)
        gains = _less(losses[cleaning.CONTROL], losses[text])
        yield Effect(
            f"a crawl's {text}", "as many pages gone by chance", gains, NATS, "course.labs.record data", "25_data_lab"
        )
    rounded = [r for r in qat_vs_ptq.read() if r["format"] == "int4"]
    for value, unit, sign in (("loss_added", NATS, -1.0), ("needles", POINTS, 100.0)):
        inside, after = (_by_seed(rounded, value, training=training) for training in ("qat", "plain"))
        yield Effect(
            f"training with INT4's rounding, by {'loss' if unit == NATS else 'needles found'}",
            "rounding afterwards",
            _less(inside, after, sign),
            unit,
            "tools.qat_vs_ptq --summary data/reference/quantization.csv",
            "17_quantization",
        )


def _reinforcement() -> Iterator[Effect]:
    for name, kind, task in (("control", "easy", "running totals"), ("hop", "hop", "two facts in a row")):
        for problems in ("as trained", "longer"):
            asked = [r for r in measure.read(name) if (r["kind"], r["problems"]) == (kind, problems)]
            rivals = [r for r in asked if r["way"] not in NO_RIVALS]
            # greedy, by vote, colder samples
            best = {seed: max(r["right"] for r in rivals if r["seed"] == seed) for seed in _seeds(asked)}
            yield Effect(
                f"RL on {task}, {problems}, greedy",
                "the start's best answers" + (", RL for the form" if name == "hop" else ""),
                _less(_by_seed(asked, "right", way=TRAINED), best, 100),
                POINTS,
                f"rl.measure {name}",
                "12_rl_from_verifiable_rewards",
            )
    speed = measure.read("speed")
    waiting = _by_seed(speed, "trajectories_per_s", mode="sync")
    for mode, claim in (("april", "APRIL"), ("async", "asynchronous RL")):
        rates = _by_seed(speed, "trajectories_per_s", mode=mode)
        yield Effect(
            f"{claim}: more answers a second",
            "synchronous RL",
            [100 * (rates[seed] / waiting[seed] - 1) for seed in sorted(rates)],
            PERCENT,
            "rl.measure speed",
            "13_the_long_tail_and_april",
        )
    stale = measure.read("staleness")
    swept = ", each at its own rate" if len({r["lr"] for r in stale}) > 1 else " at the same rate"
    for bound in measure.STALENESS_BOUNDS[1:]:
        naive, corrected = (measure.at_own_rate(stale, use, bound) for use in measure.USES)
        yield Effect(
            f"data {bound} versions old, corrected",
            "naive use" + swept,
            _less(corrected, naive, 100),
            POINTS,
            "rl.measure staleness",
            "14_staleness",
        )
    yield from _abstention()


def _abstention() -> Iterator[Effect]:
    rows, c = measure.read("abstention"), abstention_control
    known = {way: _by_seed(rows, "right", way=way, questions="known") for way in c.WAYS}
    strangers = {way: _by_seed(rows, "declined", way=way, questions="unknown_entity") for way in c.WAYS}
    both = {way: {s: (known[way][s] + strangers[way][s]) / 2 for s in known[way]} for way in c.WAYS}
    both["always declining"] = dict.fromkeys(known[c.START], 0.5)  # none of the known, all of the strangers
    mean = "known right and strangers declined, mean"
    declining = f"taught to decline: {mean}"
    for claim, control, (shares, ours, theirs) in (
        ("taught to decline by a reward: strangers declined", "the start", (strangers, c.PAID, c.START)),
        (declining, "always declining", (both, c.PAID, "always declining")),
        (declining, "a plain start", (both, c.PAID, c.PAID + c.WITHOUT)),
        (declining, "the whole model moved, as many steps", (both, c.PAID, c.WHOLE)),
        (declining, "the start, unsure answers withheld", (both, c.PAID, c.WITHHELD)),
    ):
        found = _less(shares[ours], shares[theirs], 100)
        yield Effect(claim, control, found, POINTS, "rl.measure abstention", "15_hallucination")


def _seeds(rows: Rows) -> list[int]:
    return sorted({r["seed"] for r in rows})


TRAINED = "after RL, greedy"
NO_RIVALS = (TRAINED, "after RL, one sample", "start, any of 16 samples")  # the last needs somebody who knows


def effects() -> list[Effect]:
    """Every effect, in the order of the course."""
    return [*_scorecard(), *_pretraining(), *_reinforcement()]


def table(found: Sequence[Effect]) -> str:
    """The effects by verdict, two lines each."""
    lines = []
    for verdict in VERDICTS:
        lines.append(verdict)
        for one in found:
            if one.verdict == verdict:
                lines += [f"  {one.claim}", f"      {one.figure}, against {one.control}"]
    return "\n".join(lines)


def page() -> str:
    """The same as a table in Markdown, with the command that makes each record and the notebook that shows it."""
    lines = [
        "| effect | against | difference | | record: `python -m minglm.` | shown in |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.claim} | {one.control} | {one.figure} | **{one.verdict}** | `{one.command}` | `{one.notebook}` |"
        for one in effects()
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    Parser(prog="python -m minglm.course.effects", description=(__doc__ or "").splitlines()[0]).parse_args(argv)
    print(table(effects()))
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
