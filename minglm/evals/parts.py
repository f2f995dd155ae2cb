"""What two parts of a tiny-world model are worth beside what does the same without being learnt.

    attention captured    the share on the keys that the indexer chooses, beside the best of `minglm.evals.choosers`
    drafts right          the prediction module's, beside tokens copied from the text (`minglm.evals.drafts`)

Rows have the columns of `minglm.tools.demo_seeds`: `value` beside `rule` and `rule_value`, all shares.
"""

from __future__ import annotations

import random
import statistics
from typing import Any

from minglm.data.tiny_world import story
from minglm.data.tiny_world.grammar import write
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tiny_world.vocabulary import token_ids
from minglm.evals import drafts, needle
from minglm.evals.indexer_recall import indexer_recall
from minglm.inference.generate import generate
from minglm.model.model import Model
from minglm.training.tiny_world import VALIDATION_SEED

PASSAGES, TEXTS = 8, 16  # enough for these shares: thousands of queries, hundreds of drafts
_BEGUN, _STORY = 64, 64  # tokens of a story that are given, and that are written


def rows(model: Model, reader: Model, tokenizer, count: int, length: int, seed: int = 1) -> list[dict[str, Any]]:
    """Every line.

    Args:
        model: answers questions. reader: writes text, the stage before the chat. count: texts that are drafted for.
        length: tokens of a passage.
    """
    asked = [p.prompt_ids for p in needle.problems(tokenizer, count, length, 4, None, "plain", seed)]
    ids, bos = token_ids(), tokenizer.bos
    told = [write(story.STORY, random.Random(f"drafts/{seed}/{i}"), None).tokens[:_BEGUN] for i in range(count)]
    stories = [[bos, *(ids[t] for t in tokens)] for tokens in told]
    return [
        _attention(reader, length),
        _drafts("recall answers", model, asked, needle.ANSWER_TOKENS, tokenizer.eos),
        _drafts("stories", reader, stories, _STORY, tokenizer.eos),
    ]


def _attention(model: Model, length: int) -> dict[str, Any]:
    unseen = TinyWorldLoader(1, length, VALIDATION_SEED, {"chronicle": 1.0}, validation=True)
    layers = [
        x for i in range(PASSAGES) for x in indexer_recall(model, unseen.batch(i).tokens[0], mode="dense")["layers"]
    ]
    rules = {name: statistics.fmean(x["rules"][name] for x in layers) for name in layers[0]["rules"]}
    rule, share = max(rules.items(), key=lambda item: item[1])
    name = f"{model.config.index_topk} of {length} keys, indexer"
    value = statistics.fmean(x["indexer"] for x in layers)
    return {"group": "attention captured", "name": name, "value": value, "rule": rule, "rule_value": share}


def _drafts(name: str, model: Model, prompts: list[list[int]], length: int, stop: int) -> dict[str, Any]:
    made = generate(model, prompts, length, stop=(stop,), mode="sparse")
    texts = [[*t, *[stop] * ended] for t, ended in zip(made.tokens, made.stopped, strict=True)]
    return {
        "group": "drafts right",
        "name": f"{name}, module",
        "value": drafts.by_module(model, prompts, length, (stop,), "sparse"),
        "rule": "copied from the text",
        "rule_value": drafts.by_copy(prompts, texts),
    }
