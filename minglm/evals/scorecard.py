"""The scorecard of a tiny-world model: recall, skills, stories and next tokens, each beside what needs no skill.

Every rate has a 95% interval (Wilson) and the best trivial rule on the same questions; losses stand beside the floor of
the language and n-gram tables of the run's own training text. `minglm eval scorecard` prints it.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm.data.shards import Batch
from minglm.data.tiny_world import story
from minglm.data.tiny_world.checking import check
from minglm.data.tiny_world.documents import MIXTURE
from minglm.data.tiny_world.grammar import write
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tiny_world.vocabulary import token_ids
from minglm.errors import InputError
from minglm.evals import needle, next_token, skills
from minglm.evals.statistics import wilson
from minglm.inference.generate import generate
from minglm.inference.load import load_model
from minglm.training import checkpoint, recipe
from minglm.training.tiny_world import VALIDATION_SEED, open_tiny_world

RECALL = (("plain", 1), ("plain", 2), ("plain", 4), ("plain", 8), ("several", 4), ("hop", 4), ("absent", 4))
LONG_FACTS = 4  # in a passage of twice the length
STORY_TOKENS = 160
TEXT_STAGES = ("pretrain", "long_context", "sparse")
COUNTED_TOKENS = 2_000_000  # of a stage's training text, that n-gram tables are counted on at most
VALIDATION_TOKENS = 16_384


@dataclass(frozen=True)
class Row:
    """One line: `right` of `total`, and what each rule reaches on the same questions (shares)."""

    group: str
    name: str
    right: int
    total: int
    rules: dict[str, float]

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the rate."""
        return wilson(self.right, self.total)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "rate": self.right / self.total, "interval": list(self.interval)}


def scorecard(
    run: str | Path,
    model,
    tokenizer,
    count: int = 64,
    length: int = 512,
    seed: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Everything that can be said of a run, as plain data.

    Args:
        run: folder of the run, for its recipes. count: questions of each line. length: tokens of a recall passage;
            four facts are also asked for in one twice as long, as far as the model's positions go.
        say: called with a line before each part.

    Raises:
        InputError: the run's model has another vocabulary than the tiny world's.
    """
    if not needle.is_tiny_world(tokenizer):
        raise InputError(
            f"{run}: its vocabulary is not the tiny world's, whose skills the scorecard asks for; "
            "train with corpus: tiny_world, or use `minglm eval pass`"
        )
    most = model.config.max_position_embeddings - needle.ANSWER_TOKENS
    length, twice = min(length, most), min(2 * length, most)
    folders = chain(run)
    trained = [recipe.load(folder / "recipe.yaml") for folder in folders]
    mode = "sparse" if any(r.mode != "dense" for r in trained) else "dense"
    rows: list[Row] = []
    say("recall: facts among others")
    rows += [_recall(model, tokenizer, form, facts, count, length, seed, mode) for form, facts in RECALL]
    if twice > length:
        long = _recall(model, tokenizer, "plain", LONG_FACTS, count, twice, seed, mode)
        rows.append(dataclasses.replace(long, name=f"{long.name}, {twice:,} tokens"))
    for skill in skills.SKILLS:
        say(f"skill: {skill}")
        rows.append(_skill(model, tokenizer, skill, count, seed, mode))
    # Chat training bends a model away from plain text: that is asked of the stage before it.
    text_stages = [(f, r) for f, r in zip(folders, trained, strict=True) if r.stage != "sft"]
    reader = model
    if text_stages and len(text_stages) < len(folders):
        reader = load_model(text_stages[-1][0])[0]
    say("stories: grammar and state")
    rows += _stories(reader, tokenizer, count, seed, mode)
    say("next tokens: floor and n-gram tables")
    return {
        "run": str(run),
        "mode": mode,
        "length": length,
        "rows": [r.to_dict() for r in rows],
        "text_run": str(text_stages[-1][0]) if text_stages else str(run),
        **text_quality(reader, trained, mode),
    }


def chain(run: str | Path) -> list[Path]:
    """The run folders that made a run, each with its recipe, the first stage first, as far as they are there."""
    out: list[Path] = []
    folder: Path | None = Path(run)
    while folder is not None and (found := checkpoint.latest(folder)) is not None:
        folder = found.path.parent.parent
        if not (folder / "recipe.yaml").is_file():
            break
        out.insert(0, folder)
        try:
            before = json.loads((folder / "versions.json").read_text(encoding="utf-8"))["init_from"]
        except (OSError, ValueError, KeyError):
            break
        folder = Path(before) if before else None
    return out


def text_quality(model, trained: Sequence[recipe.Recipe], mode: str) -> dict[str, Any]:
    """The model on unseen text: `floor` by what a token needs, and `counts`, n-gram tables of its training text.

    Both are None where no recipe of the run says what text it was trained on.
    """
    text = [r for r in trained if r.stage in TEXT_STAGES and r.corpus == recipe.TINY_WORLD]
    if not text:
        return {"floor": None, "counts": None}
    last = text[-1]
    valid = TinyWorldLoader(last.batch_size, last.seq_len, VALIDATION_SEED, last.documents or MIXTURE, validation=True)
    batches = max(1, VALIDATION_TOKENS // (last.batch_size * last.seq_len))
    shown = [rows for r in text for rows in _training(r)]
    return {
        "floor": next_token.against_floor(model, valid, batches, mode),
        "counts": next_token.against_counts(model, shown, valid, batches, mode),
        "counted_tokens": sum(rows.tokens.numel() for rows in shown),
        "validation_seed": VALIDATION_SEED,
    }


def _training(r: recipe.Recipe) -> list[Batch]:
    """The batches of a stage, its last ones where they are more than are counted."""
    (_, train, _, _), passes = open_tiny_world(r, None), r.steps * r.grad_accum
    most = max(1, COUNTED_TOKENS // (r.batch_size * r.seq_len))
    return [train.batch(i) for i in range(max(0, passes - most), passes)]


def _recall(model, tokenizer, form: str, facts: int, count: int, length: int, seed: int, mode: str) -> Row:
    asked = needle.problems(tokenizer, count, length, facts, None, form, seed)
    right = sum(p.is_right(a) for p, a in zip(asked, needle.answer(model, tokenizer, asked, mode), strict=True))
    rng = random.Random(seed)
    rules = {r: sum(p.is_right(p.by_rule(r, rng)) for p in asked) / count for r in needle.RULES}
    name = f"{facts} fact{'s' * (facts > 1)}" + ("" if form == "plain" else f", {form}")
    return Row("recall", name, right, count, rules)


def _skill(model, tokenizer, skill: str, count: int, seed: int, mode: str) -> Row:
    examples = skills.problems(skill, count, seed)
    right = sum(skills.ask(model, tokenizer, skill, examples, mode))
    rules = {r: sum(skills.by_rule(skill, r, e) for e in examples) / len(examples) for r in skills.SKILLS[skill].rules}
    return Row("skill", skill, right, len(examples), rules)


def _stories(model, tokenizer, count: int, seed: int, mode: str) -> list[Row]:
    """Sentences of sampled stories; the rule beside them is a right story with its sentences in another order."""
    ids = token_ids()
    words = {i: w for w, i in ids.items()}
    begin = [tokenizer.bos, ids["Story"], ids["\n"]]
    seeds = [seed * 1_000_003 + i for i in range(count)]
    made = generate(model, [begin] * count, STORY_TOKENS, temperature=1.0, seed=seeds, stop=(tokenizer.eos,), mode=mode)
    judged = [
        check(story.STORY, ["Story", "\n", *(words.get(t, "?") for t in ids)], ended)
        for ids, ended in zip(made.tokens, made.stopped, strict=True)
    ]
    shuffled = [check(story.STORY, _shuffled(random.Random(f"order/{seed}/{i}"))) for i in range(count)]
    total, mixed = sum(c.sentences for c in judged), sum(c.sentences for c in shuffled)
    rule = "the sentences of a true story in another order"
    return [
        Row(
            "stories",
            name,
            sum(getattr(c, what) for c in judged),
            total,
            {rule: sum(getattr(c, what) for c in shuffled) / mixed},
        )
        for name, what in (("sentences of the grammar", "grammatical"), ("… and true to the story", "consistent"))
    ]


def _shuffled(rng: random.Random) -> list[str]:
    written = write(story.STORY, rng, None)
    bounds = [*written.starts, len(written.tokens)]
    first, *body, last = (written.tokens[a:b] for a, b in zip(bounds, bounds[1:], strict=False))
    rng.shuffle(body)
    return [t for part in (first, *body, last) for t in part]


def table(result: dict[str, Any]) -> str:
    """The scorecard as text."""
    lines = [f"{'':10}{'':24}{'right':>7}  {'95%':>12}  {'of':>5}  without the skill"]
    group = ""
    for row in result["rows"]:
        low, high = row["interval"]
        best = sorted(row["rules"].items(), key=lambda item: -item[1])
        beside = ", ".join(f"{name} {share:.0%}" for name, share in best)
        lines.append(
            f"{row['group'] if row['group'] != group else '':10}{row['name']:24}{row['rate']:7.0%}  "
            f"{f'{low:.0%} to {high:.0%}':>12}  {row['total']:>5}  {beside}"
        )
        group = row["group"]
    lines.append(
        f"recall passages of {result['length']} tokens, {result['mode']} attention; names and codes unseen; "
        f"stories and unseen text by {result['text_run']}"
    )
    if result["floor"]:
        lines += ["", "unseen text, nats a token      loss   floor   above   of the tokens"]
        lines += [
            f"  {name:26}{q['loss']:8.3f}{q['floor']:8.3f}{q['above']:8.3f}{q['share']:10.0%}"
            for name, q in result["floor"].items()
        ]
        lines += [
            "",
            f"next token of unseen text     right    loss   (tables: {result['counted_tokens']:,} tokens of training)",
        ]
        lines += [f"  {name:26}{q['accuracy']:8.1%}{q['loss']:8.3f}" for name, q in result["counts"].items()]
    return "\n".join(lines)
