"""A recipe: one small YAML that says everything about one training stage, checked before anything runs.

Every key is a field below with its meaning, default and unit; `render` writes them back as comments, so the files in
`data/recipes` cannot drift from the code (a test compares them). PyYAML is imported inside the functions that need it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from minglm import datafiles
from minglm.config import NAMED_SIZES, ModelConfig
from minglm.errors import InputError, nearest

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


def _key(default, meaning: str, unit: str = "", least=None, most=None):
    metadata = {"meaning": meaning, "unit": unit, "least": least, "most": most, "default": default}
    return (
        field(default_factory=dict, metadata=metadata) if default == {} else field(default=default, metadata=metadata)
    )


@dataclass(frozen=True)
class Recipe:
    """One stage of training. Raises InputError for any value that breaks a rule."""

    stage: str = _key("pretrain", "one of " + ", ".join(STAGES))
    model: str = _key("mini", "named size of minglm.config: " + ", ".join(NAMED_SIZES))
    model_changes: dict = _key(
        {}, "config keys that differ from the named size; after pretrain only " + ", ".join(RESUMABLE_OVERRIDES)
    )
    corpus: str = _key("stdlib", "text: stdlib, folder:PATH or hf:NAME")
    corpus_max_bytes: int | None = _key(None, "read about this much of the corpus; null for all", "bytes", 1)
    seq_len: int = _key(256, "sequence length", "tokens", 2)
    batch_size: int = _key(16, "sequences in one forward pass", "sequences", 1)
    grad_accum: int = _key(1, "forward passes added up for one update", "passes", 1)
    steps: int = _key(500, "updates", "steps", 1)
    lr: float = _key(0.005, "peak learning rate of Muon (matrices)", "", 0.0)
    adam_lr: float | None = _key(
        None, "peak learning rate of AdamW (embedding, head, norms, router); null for the same as lr", "", 0.0
    )
    warmup_steps: int = _key(30, "updates over which the learning rate rises", "steps", 0)
    final_lr_fraction: float = _key(
        0.1, "learning rate at the end of the cosine, as a part of the peak; 1 keeps it constant", "", 0.0, 1.0
    )
    weight_decay: float = _key(0.1, "decoupled weight decay (GLM-4.5 report §2.4)", "", 0.0)
    clip: float = _key(1.0, "largest norm of the gradient", "", 0.0)
    mtp_weight: float = _key(0.3, "weight of the multi-token-prediction loss (GLM-4.5 report §2.4)", "", 0.0)
    balance_weight: float = _key(1e-4, "weight of the sequence-wise balance loss (GLM-4.5 report §2.4)", "", 0.0)
    bias_rate: float = _key(
        0.001, "step of the router's balance bias; short runs need more to arrive in time", "per step", 0.0
    )
    indexer_weight: float = _key(1.0, "weight of the indexer's KL", "", 0.0)
    lookup_share: float = _key(
        0.0, "part of the rows that hide facts in a passage and ask for them (what teaches looking back)", "", 0.0, 1.0
    )
    lookup_facts: int = _key(4, "facts in such a row", "facts", 1)
    recall_steps: int = _key(
        0,
        "updates at the start in which all rows are short lookups of one fact: looking back is learnt first",
        "steps",
        0,
    )
    tasks: dict = _key(
        {}, "sft: share of each task of minglm.data.chat, e.g. {lookup: 0.7, copy: 0.3}; `file` for conversations"
    )
    conversations: str | None = _key(None, "sft: your own JSON-lines file of conversations; null for none")
    qat: str | None = _key(
        None, "train with the rounding of this format, so that `minglm quantize` costs less: int4; null for none"
    )
    qat_group: int = _key(32, "inputs that share a scale; divides every width", "inputs", 2)
    val_every: int = _key(100, "validation loss every so many updates", "steps", 1)
    val_batches: int = _key(8, "batches in one validation", "batches", 1)
    checkpoint_every: int = _key(100, "checkpoint every so many updates", "steps", 1)
    seed: int = _key(0, "of the initial weights and of the order of the data", "", 0)
    compile: bool = _key(False, "torch.compile; off: whether it pays here has not been measured")

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
        if self.stage not in STAGES:
            raise InputError(f"stage {self.stage!r}: not one of {', '.join(STAGES)}{nearest(self.stage, STAGES)}")
        if self.stage == "sft" and not self.tasks:
            raise InputError(
                "tasks={}: stage sft needs something to teach; for example tasks: {lookup: 0.7, copy: 0.3}"
            )
        if self.stage != "sft" and self.tasks:
            raise InputError(f"tasks={self.tasks!r}: only stage sft has tasks; remove the key or use stage: sft")
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

    def config(self) -> ModelConfig:
        """The model this recipe trains."""
        return ModelConfig.named(self.model, **self.model_changes)

    @property
    def mode(self) -> str:
        """Attention mode: "dense", "warmup" or "sparse"."""
        return MODES[self.stage]

    @property
    def tokens_per_step(self) -> int:
        return self.seq_len * self.batch_size * self.grad_accum

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def changed(self, **changes) -> Recipe:
        """A copy with other values, checked like a new one; an unknown key is refused with the nearest known one."""
        return from_dict({**self.to_dict(), **changes})


def _checked(spec: dataclasses.Field, value):
    """The value in its field's type, or InputError; YAML gives 3e-4 as text and 1 for 1.0."""
    kind, least, most = str(spec.type), spec.metadata["least"], spec.metadata["most"]
    if value is None and kind.endswith("| None"):
        return None
    wrong = None
    if kind.startswith("float") and not isinstance(value, bool):
        try:
            value = float(value)
            wrong = None if math.isfinite(value) else "a finite number"
        except (TypeError, ValueError):
            wrong = "a number"
    elif kind.startswith("int"):
        wrong = None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    elif kind.startswith("bool"):
        wrong = None if isinstance(value, bool) else "true or false"
    elif kind.startswith("str"):
        wrong = None if isinstance(value, str) else "text"
    elif kind.startswith("dict"):
        wrong = (
            None
            if isinstance(value, dict) and all(isinstance(k, str) for k in value)
            else "a mapping such as {key: value}"
        )
    else:
        wrong = "a number"
    if wrong:
        raise InputError(
            f"{spec.name}={value!r}: must be {wrong}; the default is {spec.name}: {_yaml(spec.metadata['default'])}"
        )
    if (least is not None and value < least) or (most is not None and value > most):
        limits = f"at least {least}" + (f" and at most {most}" if most is not None else "")
        raise InputError(
            f"{spec.name}={value!r}: must be {limits}; the default is {spec.name}: {_yaml(spec.metadata['default'])}"
        )
    if spec.name in ("lr", "clip") and value == 0:
        raise InputError(
            f"{spec.name}=0: nothing would be learnt; the default is {spec.name}: {_yaml(spec.metadata['default'])}"
        )
    return value


def from_dict(values: dict) -> Recipe:
    """Build a recipe; an unknown key is refused with the nearest known one."""
    return made(Recipe, values, "recipe", "minglm/training/recipe.py")


def made(kind: type, values: dict, word: str, home: str):
    """A dataclass of keys from a mapping; `word` names it in messages, `home` is the file that lists its keys."""
    known = [spec.name for spec in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise InputError(f"{word} key {key!r}: not a known key{nearest(str(key), known)}; see {home} for the list")
    return kind(**values)


def read(name: str | Path, folder: Path, kind: str) -> dict:
    """The keys of a YAML file, by path or by its name in `folder`, not checked yet; `kind` names it in messages.

    Raises:
        InputError: no such file (the nearest name is given), or not YAML.
    """
    import yaml

    path, named, shown = Path(name), list(datafiles.catalogue(folder, ".yaml")), datafiles.shown(folder)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name}.yaml"
        if not path.is_file():
            raise InputError(
                f"{kind} {str(name)!r}: not one of {', '.join(named)}{nearest(str(name), named)}; or give a path ending in .yaml"
            )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe file; named {kind}s are {', '.join(named)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as err:
        raise InputError(
            f"{path}: not readable as YAML ({' '.join(str(err).split())}); see {shown} for examples"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be key: value lines; see {shown} for examples")
    return values


def load(name: str | Path, changes: dict | None = None) -> Recipe:
    """Read a recipe by path, or by the name of a file in data/recipes; `changes` override its keys.

    Raises:
        InputError: no such recipe (the nearest name is given), not YAML, or a key or value out of order.
    """
    return from_dict({**read(name, datafiles.data("recipes"), "recipe"), **(changes or {})})


def parse_change(text: str) -> tuple[str, object]:
    """`key=value` from the command line, the value read as YAML: ("lr", 0.01)."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text!r}: must be key=value; for example --set lr=0.01")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text!r}: the value is not readable as YAML; for example --set lr=0.01") from None


def names() -> list[str]:
    """Recipes that come with the project."""
    return list(datafiles.catalogue("recipes", ".yaml"))


def render(recipe: Recipe, title: str = "") -> str:
    """The recipe as YAML, each key with a comment: meaning, unit, default."""
    return f"# {title or STAGES[recipe.stage]}\n{explained(recipe)}"


def explained(keys) -> str:
    """A dataclass of keys as YAML, each with its meaning, unit and default behind it."""
    lines = []
    for spec in dataclasses.fields(keys):
        unit = f", {spec.metadata['unit']}" if spec.metadata["unit"] else ""
        entry = f"{spec.name}: {_yaml(getattr(keys, spec.name))}"
        lines.append(f"{entry:<27} # {spec.metadata['meaning']}{unit} (default {_yaml(spec.metadata['default'])})")
    return "\n".join(lines) + "\n"


def _yaml(value) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str):
        import yaml

        plain = (
            set(value) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./ ")
            and value[:1].isalpha()
        )
        if plain and value == value.strip() and yaml.safe_load(value) == value:
            return value
        return yaml.safe_dump(value, default_style='"', width=10**9).strip()
    return str(value)
