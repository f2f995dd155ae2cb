"""minglm: a small GLM-5, built to be read. Importing this package never imports torch.

What most programs need, by name:

    the model       ModelConfig (its one configuration), Model (the network), InputError (what is raised for bad input)
    training        Recipe, train
    use             load_model (a folder as model), generate, stream

    >>> import minglm
    >>> minglm.ModelConfig.named("nano").num_hidden_layers
    3

Names are loaded when they are first asked for; only `Model`, `train`, `load_model`, `generate` and `stream` load torch.
"""

from __future__ import annotations

import importlib
import os

__version__ = "0.1.0"

# Threads of torch wait for each other by spinning. Beside another busy program one of them has no core to spin on, and
# the default of 300,000 turns makes every small operation wait for a time slice (`make bench ONLY=beside`). It must be
# set before torch is loaded; who has chosen a way of waiting keeps it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

# public name → (module, its name there)
_PUBLIC = {
    "InputError": ("minglm.errors", "InputError"),
    "Model": ("minglm.model.model", "Model"),
    "ModelConfig": ("minglm.config", "ModelConfig"),
    "Recipe": ("minglm.training.recipe", "Recipe"),
    "generate": ("minglm.inference.generate", "generate"),
    "load_model": ("minglm.inference.load", "load_model"),
    "stream": ("minglm.inference.generate", "stream"),
    "train": ("minglm.training.loop", "train"),
}
__all__ = [*_PUBLIC]


def __getattr__(name: str):  # unannotated, which means of any type: `typing` need not be loaded
    if name not in _PUBLIC:
        raise AttributeError(f"module 'minglm' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
