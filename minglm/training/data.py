"""What a run learns from and what it is tried on: shards of its corpus, conversations, and text that training never
sees.

A run goes on only on the text that it was begun on; its versions.json names the folder of shards, whose name carries
the hash of the text. Where no text is left to try it on, no validation loss is measured, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from minglm.config import ModelConfig
from minglm.data import conversations, shards
from minglm.data.chat import MixedLoader, SftLoader
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.training.recipe import TINY_WORLD, Recipe
from minglm.training.tiny_world import VALIDATION_SEED, open_tiny_world


class Data(NamedTuple):
    """What a run learns from, and what it is tried on."""

    tokenizer: Tokenizer
    loader: shards.BatchSource
    validation: shards.BatchSource | None  # None: there is no unseen text
    notes: dict[
        str, str | None
    ]  # for versions.json: folder of the shards, hashes of the text, how validation is chosen


def open_data(
    recipe: Recipe,
    config: ModelConfig,
    run_dir: Path,
    tokenizer_from: str | Path | None,
    begun_on: dict[str, str | None] | None,
    tell: Callable[[str], None],
) -> Data:
    """Read the corpus, and make its shards where they are not there yet.

    Args:
        tokenizer_from: run or checkpoint folder whose tokenizer is used; None or without one: a new one.
        begun_on: `note` of a run that goes on; None for a new one. tell: takes lines for the terminal.

    Raises:
        InputError: no such text, or not the text that the run was begun on.
    """
    if recipe.corpus == TINY_WORLD:
        return _unchanged(Data(*open_tiny_world(recipe, _tokenizer_path(tokenizer_from))), run_dir, begun_on)
    parent, before = run_dir.parent / "data", (begun_on or {}).get("data")
    try:
        own = _tokenizer_path(tokenizer_from)
        built = shards.build(recipe.corpus, parent, config.vocab_size, recipe.corpus_max_bytes, own)
    except InputError as err:  # a data set without the network, a folder that is gone: what was made of it may serve
        if before is None or not (parent / before / "done.json").is_file():
            raise
        built = shards.open_built(parent / before)
        tell(f"{err}; going on with {built.folder}, which was made from it")
    tell(built.left_out)
    loader, validation, rule = (_conversations if recipe.stage == "sft" else _text)(recipe, built, tell)
    if validation is None:
        tell(f"{rule}: no validation loss is measured")
    notes = {
        "data": built.folder.name,
        "corpus_sha256": built.train.header["corpus_sha256"],
        "train_sha256": built.train.header["sha256"],
        "conversations_sha256": conversations.sha256(recipe.conversations) if recipe.conversations else None,
        "validation": rule,
    }
    return _unchanged(Data(built.tokenizer, loader, validation, notes), run_dir, begun_on)


def _unchanged(data: Data, run_dir: Path, begun_on: dict[str, str | None] | None) -> Data:
    """The data, when a run that goes on was begun on the same.

    Raises:
        InputError: it was begun on other text.
    """
    for key, was in (begun_on or {}).items():
        if key != "data" and was != data.notes[key]:
            raise InputError(
                f"{run_dir}: was begun on other text ({key} {str(was)[:12]}, now {str(data.notes[key])[:12]}); use "
                "--overwrite to start over on the new text, or another --run, with --init-from for the weights"
            )
    return data


def note(run_dir: Path) -> dict[str, str | None]:
    """What versions.json of a run says of its text: hashes, which must not change while it goes on, and the shards."""
    try:
        said = json.loads((run_dir / "versions.json").read_text(encoding="utf-8"))
        return {key: said.get(key) for key in ("data", "corpus_sha256", "train_sha256", "conversations_sha256")}
    except (OSError, ValueError, AttributeError):
        return {}  # killed before the first note: nothing has been learnt yet


Rows = tuple[shards.BatchSource, shards.BatchSource | None, str]  # to learn from, unseen, how these were chosen


def _text(recipe: Recipe, built: shards.Built, tell: Callable[[str], None]) -> Rows:
    """Of a stage that learns from text."""
    r = recipe
    text = shards.Loader(built.train, r.batch_size, r.seq_len, r.seed)
    loader: shards.BatchSource = text
    if r.lookup_share or r.recall_steps:
        recall = r.recall_steps * r.grad_accum
        loader = MixedLoader(text, built.tokenizer, r.lookup_share, r.lookup_facts, r.seed, recall)
    if built.validation is None:
        return loader, None, built.rule
    if len(built.validation) < r.seq_len + 1:
        held = f"{len(built.validation)} tokens, fewer than a row of seq_len={r.seq_len}"
        return loader, None, f"no unseen text: {built.rule} holds {held}"
    return loader, shards.Loader(built.validation, r.batch_size, r.seq_len, VALIDATION_SEED), built.rule


def _conversations(recipe: Recipe, built: shards.Built, tell: Callable[[str], None]) -> Rows:
    """Of stage sft: conversations of a file are parted by their hash, and so are made ones."""
    r = recipe
    train, unseen = conversations.split(conversations.load_jsonl(r.conversations)) if r.conversations else ([], [])
    shape = (r.batch_size, r.seq_len)
    loader = SftLoader(built.tokenizer, built.train, *shape, r.tasks, r.seed, train)
    if loader.cut:
        tell(
            f"{r.conversations}: {loader.cut} of {len(train)} conversations are longer than seq_len={r.seq_len}: "
            "their beginning is left out"
        )
    out_of_reach = {"file": not unseen, "lookup": built.validation is None}
    tasks = {task: share for task, share in r.tasks.items() if share and not out_of_reach.get(task)}
    if not tasks:
        return loader, None, "no unseen text: too few conversations to hold one out"
    validation = SftLoader(built.tokenizer, built.validation, *shape, tasks, VALIDATION_SEED, unseen, validation=True)
    rule = f"unseen conversations of {', '.join(tasks)}"
    if "file" in tasks:
        rule += f" ({len(unseen)} of {len(train) + len(unseen)} in the file, by their hash)"
    if missing := [task for task, share in r.tasks.items() if share and task not in tasks]:
        rule += f"; no unseen text of {', '.join(missing)}"
    return loader, validation, rule


def _tokenizer_path(folder: str | Path | None) -> Path | None:
    """The tokenizer.json of a run or checkpoint folder, if it has one."""
    if folder is None:
        return None
    folder = Path(folder)
    places = (p / "tokenizer.json" for p in (folder, folder.parent, folder.parent.parent))
    return next((p for p in places if p.is_file()), None)
