"""What a quantised model weighs and what it lost: bytes, bits per weight, loss, needles, rollout mismatch.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minglm.data import corpus, shards
from minglm.data.chat import SftLoader
from minglm.data.shards import IGNORE
from minglm.errors import InputError
from minglm.inference.generate import generate
from minglm.model.model import Model
from minglm.quant.formats import Spec
from minglm.quant.modules import PackedExperts, PackedLinear, empty_packed
from minglm.training import recipe as recipes
from minglm.training.tiny_world import open_tiny_world

SEED = 10_007  # of the validation batches, the same as in training
ICEPOP = 2.0  # GLM-5 report §3.2: a token whose probability ratio leaves [1/β, β] is masked


def sizes(model: Model) -> dict[str, float]:
    """Bytes of the tensors of a model: all, those of quantised matrices, and bits per weight of each.

    `weights` counts the numbers that the tensors stand for: two for a byte of INT4, none for a scale.
    """
    total = quantised = 0
    weights = {True: 0, False: 0}
    for module in model.modules():
        packed = isinstance(module, (PackedLinear, PackedExperts))
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            total += tensor.nbytes
            quantised += tensor.nbytes * packed
            if not (packed and name.endswith(("scale", "scale_inv"))):
                weights[packed] += tensor.numel() * (2 if packed and name.endswith("packed") else 1)
    return {
        "bytes": total,
        "weights": sum(weights.values()),
        "bits_per_weight": 8 * total / sum(weights.values()),
        "quantised_bytes": quantised,
        "quantised_weights": weights[True],
        "quantised_bits_per_weight": 8 * quantised / weights[True] if weights[True] else math.nan,
    }


def projected_bytes(config, spec: Spec | None, bytes_per_value: int = 2) -> int:
    """Bytes of a model of any size without making it: GLM-5 is laid out on the meta device. `spec` None: nothing
    quantised.

    What is not quantised counts with `bytes_per_value` (2: bf16).
    """
    with torch.device("meta"):
        model = Model(config)
        model = model if spec is None else empty_packed(model, spec)
    packed = {id(m) for m in model.modules() if isinstance(m, (PackedLinear, PackedExperts))}
    return sum(
        t.numel() * (t.element_size() if id(m) in packed else bytes_per_value)
        for m in model.modules()
        for t in [*m.parameters(recurse=False), *m.buffers(recurse=False)]
    )


def validation_batches(run: str | Path, tokenizer, config, count: int | None = None) -> list:
    """The batches on which a run measures its validation loss; for a run without a recipe, sequences of the stdlib
    corpus.
    """
    run = Path(run)
    note = next(
        (p / "recipe.yaml" for p in (run, run.parent, run.parent.parent) if (p / "recipe.yaml").is_file()), None
    )
    recipe = recipes.load(note) if note else None
    if recipe and recipe.corpus == recipes.TINY_WORLD:
        unseen = open_tiny_world(recipe, None)[2]
        return [unseen.batch(i) for i in range(count or recipe.val_batches)]
    source, most = (recipe.corpus, recipe.corpus_max_bytes) if recipe else ("stdlib", 500_000)
    shard = _validation_shard(source, most, tokenizer)
    loader: SftLoader | shards.Loader
    if recipe and recipe.stage == "sft" and "file" not in recipe.tasks:
        loader = SftLoader(tokenizer, shard, recipe.batch_size, recipe.seq_len, recipe.tasks, SEED, validation=True)
    else:
        seq_len = min(recipe.seq_len if recipe else 256, config.max_position_embeddings)
        loader = shards.Loader(shard, recipe.batch_size if recipe else 8, seq_len, SEED)
    return [loader.batch(i) for i in range(count or (recipe.val_batches if recipe else 8))]


def _validation_shard(source: str, most: int | None, tokenizer) -> shards.Shard:
    """The corpus' held-out documents as one shard in memory."""
    _, documents = split = corpus.load(source, most).split()
    if not documents:
        raise InputError(f"corpus {source}: {split.rule}; add text to it, or leave out --eval")
    rows = [[tokenizer.bos, *ids, tokenizer.eos] for ids in tokenizer.encode_batch([d.text for d in documents])]
    offsets = np.cumsum([0, *(len(r) for r in rows)])[:-1]
    return shards.Shard(Path(source), np.concatenate([np.asarray(r, dtype=np.int64) for r in rows]), offsets, {})


@torch.no_grad()
def loss(model: Model, batches: list, mode: str = "sparse") -> float:
    """LM loss in nats per counted token."""
    total = count = 0.0
    for tokens, targets, doc_start in batches:
        n = int((targets != IGNORE).sum())
        total += (
            float(model(tokens, targets, mode=mode, doc_start=doc_start, mtp=False, indexer_loss=False).lm_loss) * n
        )
        count += n
    return total / max(count, 1)


@torch.no_grad()
def logprobs(model: Model, tokens: Tensor, mode: str = "sparse") -> Tensor:
    """Log-probability of every token after the first: (B, T) int64 → (B, T-1)."""
    logits = model(tokens, mode=mode).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


def rollout_mismatch(
    trainer: Model, rollout: Model, prompts: list[list[int]], new_tokens: int = 48, seed: int = 0, mode: str = "sparse"
) -> dict[str, float]:
    """How far a quantised rollout engine's policy is from the trainer's, on tokens that the rollout sampled itself.

    The ratio is p_trainer / p_rollout of each sampled token. Prompts of one length. Returns tokens, mean |log ratio|,
    KL(rollout ‖ trainer) estimated from the same tokens, the largest ratio, and the share that IcePop would mask (β =
    2).
    """
    completions = generate(rollout, prompts, new_tokens, temperature=1.0, seed=seed, mode=mode)
    tokens = torch.tensor([p + t for p, t in zip(prompts, completions.tokens, strict=True)])
    start = len(prompts[0]) - 1
    log_ratio = (logprobs(trainer, tokens, mode) - logprobs(rollout, tokens, mode))[:, start:]
    ratio = log_ratio.exp()
    return {
        "tokens": log_ratio.numel(),
        "mean_abs_log_ratio": float(log_ratio.abs().mean()),
        "kl": float((ratio - 1 - log_ratio).mean()),
        "largest_ratio": float(torch.maximum(ratio, 1 / ratio).max()),
        "masked_share": float(((ratio < 1 / ICEPOP) | (ratio > ICEPOP)).float().mean()),
    }
