"""A recipe: one small YAML that says everything about one training stage, checked before anything runs.

Every key is a field below with its meaning, default and unit; `render` writes them back as comments, so the files in
`data/recipes` cannot drift from the code (a test compares them). PyYAML is imported inside the functions that need it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.data.tiny_world.documents import check_mixture
from minglm.errors import InputError, nearest
from minglm.settings import MOST_SEED, BaseSettings, nonzero, read_yaml, setting
from minglm.sizes import NAMED_SIZES

# Attention mode of the model and what each stage trains.
STAGES = {
    "pretrain": "dense attention; all but the indexer learns",
    "long_context": "as pretrain, on longer sequences; may change rope_theta",
    "dsa_warmup": "dense attention, frozen; the indexer learns to predict where attention looks (KL)",
    "sparse": "each query reads only the indexer's choice; the model learns from the LM loss, the indexer from the KL",
    "sft": "sparse attention on conversations; the loss counts the assistant's words",
}
MODES = {"pretrain": "dense", "long_context": "dense", "dsa_warmup": "warmup", "sparse": "sparse", "sft": "sparse"}
TINY_WORLD = "tiny_world"
# Changes of the model's config that leave every weight's shape alone, so a later stage may make them.
RESUMABLE_OVERRIDES = ("rope_theta", "max_position_embeddings", "index_topk", "mtp_depth")


@dataclass(frozen=True)
class Recipe(BaseSettings):
    """One stage of training. Raises InputError for any value that breaks a rule."""

    KIND = "recipe"

    stage: str = setting("pretrain", "one of " + ", ".join(STAGES))
    model: str = setting("mini", "named size of minglm.sizes: " + ", ".join(NAMED_SIZES))
    model_changes: dict = setting(
        {}, "config keys that differ from the named size; after pretrain only " + ", ".join(RESUMABLE_OVERRIDES)
    )
    corpus: str = setting("stdlib", "text: tiny_world (generated), stdlib, folder:PATH or hf:NAME")
    documents: dict = setting(
        {}, "tiny_world: share of each kind of document, e.g. {story: 0.5, codes: 0.5}; {} for the usual mixture"
    )
    corpus_max_bytes: int | None = setting(None, "read about this much of the corpus; null for all", "bytes", 1)
    seq_len: int = setting(256, "sequence length", "tokens", 2)
    batch_size: int = setting(16, "sequences in one forward pass", "sequences", 1)
    grad_accum: int = setting(1, "forward passes added up for one update", "passes", 1)
    steps: int = setting(500, "updates", "steps", 1)
    lr: float = setting(0.005, "peak learning rate of Muon (matrices)", "", 0.0, check=nonzero)
    adam_lr: float | None = setting(
        None, "peak learning rate of AdamW (embedding, head, norms, router); null for the same as lr", "", 0.0
    )
    embedding_std: float | None = setting(
        None,
        "standard deviation of the embedding's first values; null for the model's initializer_range. Words that start "
        "far apart (0.5) are told apart sooner, which is what looking back needs",
        "",
        0.0,
        check=nonzero,
    )
    warmup_steps: int = setting(30, "updates over which the learning rate rises", "steps", 0)
    final_lr_fraction: float = setting(
        0.1, "learning rate at the end of the cosine, as a part of the peak; 1 keeps it constant", "", 0.0, 1.0
    )
    weight_decay: float = setting(0.1, "decoupled weight decay (GLM-4.5 report §2.4)", "", 0.0)
    clip: float = setting(1.0, "largest norm of the gradient", "", 0.0, check=nonzero)
    mtp_weight: float = setting(0.3, "weight of the multi-token-prediction loss (GLM-4.5 report §2.4)", "", 0.0)
    balance_weight: float = setting(1e-4, "weight of the sequence-wise balance loss (GLM-4.5 report §2.4)", "", 0.0)
    bias_rate: float = setting(
        0.001, "step of the router's balance bias; short runs need more to arrive in time", "per step", 0.0
    )
    indexer_weight: float = setting(1.0, "weight of the indexer's KL", "", 0.0)
    lookup_share: float = setting(
        0.0, "part of the rows that hide facts in a passage and ask for them (what teaches looking back)", "", 0.0, 1.0
    )
    lookup_facts: int = setting(4, "facts in such a row", "facts", 1)
    recall_steps: int = setting(
        0,
        "updates at the start in which all rows are short lookups of one fact: looking back is learnt first",
        "steps",
        0,
    )
    pairs_words: int = setting(64, "tiny_world: words of the first lesson, keys and values that come again", "words", 1)
    pairs_steps: int = setting(
        0, "tiny_world: updates of that lesson, in which looking back is learnt before there is text", "steps", 0
    )
    pairs_grow_steps: int = setting(
        0, "tiny_world: updates after it in which half of the rows are pairs of more and more words", "steps", 0
    )
    tasks: dict = setting(
        {},
        "sft: share of each task of minglm.data.chat, e.g. {lookup: 0.7, copy: 0.3}, or of minglm.data.tiny_world"
        ".chats, e.g. {needles: 0.5, sums: 0.5}; `file` for conversations",
    )
    conversations: str | None = setting(None, "sft: your own JSON-lines file of conversations; null for none")
    qat: str | None = setting(
        None, "train with the rounding of this format, so that `minglm quantize` costs less: int4; null for none"
    )
    qat_group: int = setting(32, "inputs that share a scale; divides every width", "inputs", 2)
    val_every: int = setting(100, "validation loss every so many updates", "steps", 1)
    val_batches: int = setting(8, "batches in one validation", "batches", 1)
    checkpoint_every: int = setting(100, "checkpoint every so many updates", "steps", 1)
    seed: int = setting(0, "of the initial weights and of the order of the data", "", 0, MOST_SEED)
    compile: bool = setting(False, "torch.compile; off: whether it pays here has not been measured")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in STAGES:
            raise InputError(f"stage {self.stage!r}: not one of {', '.join(STAGES)}{nearest(self.stage, STAGES)}")
        self._check_tasks()
        if self.corpus == TINY_WORLD:
            self._check_tiny_world()
        elif self.documents:
            raise InputError(
                f"documents={self.documents!r}: corpus {self.corpus} has no kinds; remove the key or use {TINY_WORLD}"
            )
        if self.stage != "pretrain" and (self.pairs_steps or self.pairs_grow_steps or self.embedding_std is not None):
            raise InputError(
                f"pairs_steps={self.pairs_steps}, pairs_grow_steps={self.pairs_grow_steps}, embedding_std="
                f"{self.embedding_std}: only stage pretrain begins with new weights; remove the keys"
            )
        if self.qat not in (None, "int4"):
            raise InputError(f"qat={self.qat!r}: only int4 is trained with its rounding; use qat: int4, or null")
        if self.model == "glm5":
            raise InputError(
                "model 'glm5': 744B parameters are for arithmetic and the simulator; train nano, mini or small"
            )
        config = self.config()
        if self.seq_len > config.max_position_embeddings:
            raise InputError(
                f"seq_len={self.seq_len}: longer than the model's max_position_embeddings="
                f"{config.max_position_embeddings}; lower it or raise that in model_changes"
            )

    def _check_tasks(self) -> None:
        if self.stage == "sft" and not self.tasks:
            raise InputError(
                "tasks={}: stage sft needs something to teach; for example tasks: {lookup: 0.7, copy: 0.3}"
            )
        for task, share in self.tasks.items():
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < math.inf:
                raise InputError(f"tasks={self.tasks!r}: the share of {task!r} must be a number of at least 0")
        if self.conversations and not self.tasks.get("file"):
            remedy = "add `file: 1` to tasks" if self.stage == "sft" else "use stage: sft with tasks: {file: 1}"
            raise InputError(f"conversations={self.conversations!r}: would not be used; {remedy}, or leave them out")
        if self.tasks.get("file") and not self.conversations:
            raise InputError(f"tasks={self.tasks!r}: `file` needs conversations; add conversations: FILE.jsonl")
        if self.stage == "sft" and (self.lookup_share or self.recall_steps):
            key = "lookup_share" if self.lookup_share else "recall_steps"
            raise InputError(
                f"{key}={getattr(self, key)!r}: not of stage sft; use tasks: {{lookup: 1}} there, and {key}: 0"
            )
        if self.stage != "sft" and self.tasks:
            raise InputError(f"tasks={self.tasks!r}: only stage sft has tasks; remove the key or use stage: sft")

    @property
    def first_lesson(self) -> int:
        """Updates at the start whose rows are about looking back alone; no other token is predicted in them."""
        return max(self.recall_steps, self.pairs_steps)

    def _check_tiny_world(self) -> None:
        if self.documents:
            check_mixture(self.documents)
        for key in ("lookup_share", "recall_steps", "corpus_max_bytes"):
            if getattr(self, key):
                raise InputError(
                    f"{key}={getattr(self, key)!r}: corpus {TINY_WORLD} is drawn by kinds of document; remove the key, "
                    "or use documents: {codes: 0.5, story: 0.5}"
                )

    def config(self) -> ModelConfig:
        """The model this recipe trains."""
        return ModelConfig.named(self.model, **self.model_changes)

    @property
    def mode(self) -> str:
        """Attention mode: "dense", "warmup" or "sparse"."""
        return MODES[self.stage]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update, over all its forward passes."""
        return self.seq_len * self.batch_size * self.grad_accum


def load(name: str | Path, changes: dict | None = None) -> Recipe:
    """Read a recipe by path, or by the name of a file in data/recipes; `changes` override its keys.

    Raises:
        InputError: no such recipe (the nearest name is given), not YAML, or a key or value out of order.
    """
    return Recipe.from_dict({**read_yaml(name, datafiles.data("recipes"), "recipe"), **(changes or {})})


def names() -> list[str]:
    """Recipes that come with the project."""
    return list(datafiles.catalogue("recipes", ".yaml"))


def render(recipe: Recipe, title: str = "") -> str:
    """The recipe as YAML, each key with a comment: meaning, unit, default."""
    return f"# {title or STAGES[recipe.stage]}\n{recipe.explained()}"
