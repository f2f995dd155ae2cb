"""The latent cache: what MLA keeps of each token, allocated once.

Per token and layer: the KV latent, the rotary key shared by all heads, and one indexer key on layers that run an
indexer. For GLM-5 in bf16 that is 89,856 + 19,968 bytes a token; full keys and values would be 5.1 MB.

Shapes: L layers, B batch, S key positions, R = kv_lora_rank + qk_rope_head_dim, Di = index_head_dim.
"""
from __future__ import annotations

import torch
from torch import Tensor

from minglm.config import ModelConfig
from minglm.errors import InputError


class LatentCache:
    """Preallocated cache for `batch` sequences of up to `max_len` tokens; all sequences have the same length.

    Ragged prompts are padded on the left and hidden with `doc_start` (see `minglm.generate`).

    Raises:
        InputError: more tokens than `max_len` are written.
    """

    def __init__(self, config: ModelConfig, batch: int, max_len: int, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu"):
        self.max_len, self.length = max_len, 0
        full = [i for i, kind in enumerate(config.indexer_types) if kind == "full"]
        self._index_row = {layer: row for row, layer in enumerate(full)}
        width = config.kv_lora_rank + config.qk_rope_head_dim
        self.latent = torch.zeros(config.num_hidden_layers, batch, max_len, width, dtype=dtype, device=device)
        self.index_keys = torch.zeros(len(full), batch, max_len, config.index_head_dim, dtype=dtype, device=device)

    def append(self, layer: int, latent: Tensor) -> Tensor:
        """Write (B, T, R) after the tokens already there; returns all of them, (B, length + T, R)."""
        return self._write(self.latent[layer], latent)

    def append_index_key(self, layer: int, key: Tensor) -> Tensor:
        """Write (B, T, Di) indexer keys; returns all of them, (B, length + T, Di)."""
        return self._write(self.index_keys[self._index_row[layer]], key)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        end = self.length + new.shape[1]
        if end > self.max_len:
            raise InputError(f"cache of max_len={self.max_len}: asked to hold {end} tokens; allocate it with max_len={end} or more")
        store[:, self.length:end] = new
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
