"""A recipe: one small YAML that says everything about one training stage, checked before anything runs.

Every key is a field below with its meaning, default and unit; `render` writes them back as comments, so the files in
`data/recipes` cannot drift from the code (a test compares them). PyYAML is imported inside the functions that need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from minglm.settings import BaseSettings, nonzero, read_yaml, setting
from minglm.sizes import NAMED_SIZES
from minglm.training.curriculum import Lesson, check_lessons

# Attention mode of the model and what each stage trains.
STAGES = {
    "pretrain": "dense attention; all but the indexer learns",
    "long_context": "as pretrain, on longer sequences; may change rope_theta",
    "dsa_warmup": "dense attention, frozen; the indexer learns to predict where attention looks (KL)",
    "sparse": "each query reads only the indexer's choice; the model learns from the LM loss, the indexer from the KL",
    "sft": "sparse attention on conversations; the loss counts the assistant's words",
}
MODES = {"pretrain": "dense", "long_context": "dense", "dsa_warmup": "warmup", "sparse": "sparse", "sft": "sparse"}
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
    corpus: str = setting("stdlib", "text: stdlib, folder:PATH or hf:NAME")
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
    curriculum: list = setting(
        None,
        "pretrain: lessons before the run's own rows, each with the keys of minglm.training.curriculum.Lesson, e.g. "
        "[{words: 64}, {words: 256, seq_len: 64, pairs: [3, 8]}]; null for none",
        check=check_lessons,
    )
    tasks: dict = setting(
        {}, "sft: share of each task of minglm.data.chat, e.g. {lookup: 0.7, copy: 0.3}; `file` for conversations"
    )
    conversations: str | None = setting(None, "sft: your own JSON-lines file of conversations; null for none")
    qat: str | None = setting(
        None, "train with the rounding of this format, so that `minglm quantize` costs less: int4; null for none"
    )
    qat_group: int = setting(32, "inputs that share a scale; divides every width", "inputs", 2)
    val_every: int = setting(100, "validation loss every so many updates", "steps", 1)
    val_batches: int = setting(8, "batches in one validation", "batches", 1)
    checkpoint_every: int = setting(100, "checkpoint every so many updates", "steps", 1)
    seed: int = setting(0, "of the initial weights and of the order of the data", "", 0)
    compile: bool = setting(False, "torch.compile; off: whether it pays here has not been measured")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in STAGES:
            raise InputError(f"stage {self.stage!r}: not one of {', '.join(STAGES)}{nearest(self.stage, STAGES)}")
        if self.stage == "sft" and not self.tasks:
            raise InputError(
                "tasks={}: stage sft needs something to teach; for example tasks: {lookup: 0.7, copy: 0.3}"
            )
        if self.stage != "sft" and self.tasks:
            raise InputError(f"tasks={self.tasks!r}: only stage sft has tasks; remove the key or use stage: sft")
        if self.stage != "pretrain" and (self.curriculum or self.embedding_std is not None):
            raise InputError(
                f"curriculum={self.curriculum!r}, embedding_std={self.embedding_std!r}: only stage pretrain begins "
                "with new weights; remove the keys or use stage: pretrain"
            )
        if self.qat not in (None, "int4"):
            raise InputError(f"qat={self.qat!r}: only int4 is trained with its rounding; use qat: int4, or null")
        if self.model == "glm5":
            raise InputError(
                "model 'glm5': 744B parameters are for arithmetic and the simulator; train nano, mini or small"
            )
        lessons = sum(Lesson(**lesson).steps for lesson in self.curriculum)
        if lessons >= self.steps:
            raise InputError(
                f"steps={self.steps}: the lessons of the curriculum may take {lessons} and leave none; raise steps, or "
                "lower the lessons' own"
            )
        config = self.config()
        longest = max([self.seq_len, *(Lesson(**lesson).seq_len for lesson in self.curriculum)])
        if longest > config.max_position_embeddings:
            raise InputError(
                f"seq_len={longest}: longer than the model's max_position_embeddings="
                f"{config.max_position_embeddings}; lower it or raise that in model_changes"
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
