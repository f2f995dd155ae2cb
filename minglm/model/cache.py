"""The latent cache: what MLA keeps of each token, allocated once.

Per token and layer: the KV latent, the rotary key shared by all heads, and one indexer key on layers that run an
indexer. For GLM-5 in bf16 that is 89,856 + 19,968 bytes a token; full keys and values would be 5.1 MB.

Shapes: L layers, B batch, S key positions, R = kv_lora_rank + qk_rope_head_dim, Di = index_head_dim.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from minglm.config import ModelConfig
from minglm.errors import InputError


class LatentCache:
    """Preallocated cache for `batch` sequences of up to `max_len` tokens.

    A forward of the model appends at `length`, which all sequences share. Sequences of unequal length are filled
    together with the padding on their right, which no earlier query sees;
    from then on `minglm.inference.decoder` keeps a position for each.

    Args:
        mtp: one more layer, for the multi-token prediction module that drafts.

    Raises:
        InputError: more tokens than `max_len` are written.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mtp: bool = False,
    ):
        self.max_len, self.length = max_len, 0
        full = [i for i, kind in enumerate(config.indexer_types or ()) if kind == "full"] + [
            config.num_hidden_layers
        ] * mtp
        self.index_row = {layer: row for row, layer in enumerate(full)}
        width = config.kv_lora_rank + config.qk_rope_head_dim
        self.latent = torch.zeros(config.num_hidden_layers + mtp, batch, max_len, width, dtype=dtype, device=device)
        self.index_keys = torch.zeros(len(full), batch, max_len, config.index_head_dim, dtype=dtype, device=device)

    def rows(self, start: int, stop: int, length: int = 0) -> LatentCache:
        """Sequences start … stop - 1 as a cache of their own that holds `length` tokens; the memory is shared."""
        part = copy.copy(self)
        part.length, part.latent, part.index_keys = length, self.latent[:, start:stop], self.index_keys[:, start:stop]
        return part

    def read(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """A copy of what sequence `row` holds for its first `length` positions; `write` puts it back."""
        return self.latent[:, row, :length].clone(), self.index_keys[:, row, :length].clone()

    def write(self, row: int, held: tuple[Tensor, Tensor]) -> None:
        """Put what `read` gave at the start of sequence `row`."""
        for store, part in zip((self.latent, self.index_keys), held, strict=True):
            store[:, row, : part.shape[1]] = part

    def index_store(self, layer: int) -> Tensor:
        """Indexer keys of a layer, (B, max_len, Di)."""
        return self.index_keys[self.index_row[layer]]

    def append(self, layer: int, latent: Tensor) -> Tensor:
        """Write (B, T, R) after the tokens already there; returns all of them, (B, length + T, R)."""
        return self._write(self.latent[layer], latent)

    def append_index_key(self, layer: int, key: Tensor) -> Tensor:
        """Write (B, T, Di) indexer keys; returns all of them, (B, length + T, Di)."""
        return self._write(self.index_store(layer), key)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        end = self.length + new.shape[1]
        if end > self.max_len:
            raise InputError(
                f"cache of max_len={self.max_len}: asked to hold {end} tokens; allocate it with max_len={end} or more"
            )
        store[:, self.length : end] = new
        return store[:, :end]

    def advance(self, tokens: int) -> None:
        """Called once per forward, after every layer has written its `tokens` new positions."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything after `length` tokens (used when drafted tokens are rejected)."""
        if not 0 <= length <= self.length:
            raise InputError(f"truncate({length}): the cache holds {self.length} tokens; give 0 to {self.length}")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.numel() * t.element_size() for t in (self.latent, self.index_keys))
