"""The families of Hugging Face configs that are read, by `model_type`."""

from __future__ import annotations

from sim.spec.huggingface_dense import DENSE
from sim.spec.huggingface_experts import EXPERTS
from sim.spec.huggingface_hub_code import HUB_CODE
from sim.spec.huggingface_variants import VARIANTS

FAMILIES = DENSE | EXPERTS | VARIANTS | HUB_CODE
