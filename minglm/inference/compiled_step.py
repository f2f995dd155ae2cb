"""The layers of a step of decoding in one call of compiled code (`decode.c` beside this file), on a CPU, fp32 or fp64.

`minglm.inference.decoder` says the same in torch, to be read; it is what runs elsewhere. There a step of one token is
some two hundred operations of a few microseconds; here it is the arithmetic and the reading of the weights. A row's
values do not hang on the batch it is in, and halves of a batch run on threads of their own.

Shapes: N = B·T tokens, C hidden, k chosen keys, K chosen experts, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.absorbed import AbsorbedLayer
from minglm.inference.rotary import RotaryMatrices
from minglm.model.cache import LatentCache
from minglm.model.layers import LATENT_EPS
from minglm.model.model import Model
from minglm.model.threads import parallel_for
from minglm.runtime import compiled

SOURCE = Path(__file__).with_name("decode.c")
_DEFINITIONS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.float64: ("DOUBLE",)}
_NUMBERS = ("C", "H", "L", "r", "Q", "Hi", "Di", "k", "E", "K", "V", "sparse")
_SCALES = ("norm_eps", "latent_eps", "gate_scale")
_STEPS = ("latent_layer", "latent_row", "index_layer", "index_row")
_MATRICES = (
    *("norm_in", "w_in", "norm_q", "w_q", "norm_kv", "w_out", "norm_ffn", "index_q", "index_norm", "index_norm_bias"),
    *("gate_up", "down", "router", "router_bias", "expert_gate_up", "expert_down"),
)


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_double) for name in _SCALES),
        *((name, ctypes.c_void_p) for name in ("rope", "latent", "index")),
        *((name, ctypes.c_int64) for name in _STEPS),
        *((name, ctypes.c_void_p) for name in ("norm", "head")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _MATRICES),
        *((name, ctypes.c_int64) for name in ("width", "expert_width", "cache_layer", "index_layer")),
    ]


class CompiledStep:
    """Steps of the sequences of a cache.

    Args:
        model: embedding, last norm and head are its own.
        layers: its absorbed layers, or that of its prediction module alone.
        cache: takes the new keys.
        rotary: of all positions of the cache.
        sparse: choose keys by the indexer; False reads them all and leaves indexer keys unwritten.
    """

    def __init__(
        self, model: Model, layers: Sequence[AbsorbedLayer], cache: LatentCache, rotary: RotaryMatrices, sparse: bool
    ):
        config, dtype = model.config, cache.latent.dtype
        code = compiled.library(SOURCE, *_DEFINITIONS[dtype])
        assert code is not None, "asked for where `fits` says no"
        self.code, self.cache = code, cache
        self.held: list[Tensor] = []  # what C knows by its address
        self.experts = sum(layer.moe is not None for layer in layers)
        self.topk_indices: Tensor | None = None  # (N, k) keys that the last layer read; first -1: all
        mla = layers[0].mla
        self.K, self.V, self.k = config.num_experts_per_tok, config.vocab_size, mla.topk
        self.model = _Model(
            C=config.hidden_size,
            H=mla.num_heads,
            L=mla.kv_lora_rank,
            r=mla.qk_rope_head_dim,
            Q=config.q_lora_rank,
            Hi=config.index_n_heads,
            Di=config.index_head_dim,
            k=self.k,
            E=config.n_routed_experts,
            K=self.K,
            V=self.V,
            sparse=sparse,
            norm_eps=config.rms_norm_eps,
            latent_eps=LATENT_EPS,
            gate_scale=config.routed_scaling_factor,
            rope=self._address(rotary.cos_sin),
            latent=cache.latent.data_ptr(),
            index=cache.index_keys.data_ptr(),
            latent_layer=cache.latent.stride(0),
            latent_row=cache.latent.stride(1),
            index_layer=cache.index_keys.stride(0),
            index_row=cache.index_keys.stride(1),
            norm=self._address(model.norm.weight),
            head=self._address(model.lm_head.weight),
        )
        self.layers = (_Layer * len(layers))(*(self._layer(layer) for layer in layers))

    @staticmethod
    def fits(model: Model, cache: LatentCache) -> bool:
        """Whether this machine has the code for a model and a cache of that kind."""
        latent, index, weight = cache.latent, cache.index_keys, model.embed_tokens.weight
        plain = latent.device.type == "cpu" and latent.dtype in _DEFINITIONS
        plain = plain and (weight.device, weight.dtype) == (latent.device, latent.dtype)
        rows = all(t.numel() == 0 or t.stride()[2:] == (t.shape[-1], 1) for t in (latent, index))
        return plain and rows and compiled.library(SOURCE, *_DEFINITIONS[latent.dtype]) is not None

    def _address(self, matrix: Tensor) -> int:
        """Where a matrix lies, which is kept alive."""
        matrix = matrix.detach().to(self.cache.latent.dtype).contiguous()
        self.held.append(matrix)
        return matrix.data_ptr()

    def _layer(self, absorbed: AbsorbedLayer) -> _Layer:
        mla, out = absorbed.mla, _Layer(cache_layer=absorbed.mla.layer)
        matrices = {
            "norm_in": absorbed.norm_in.weight,
            "w_in": absorbed.w_in,
            "norm_q": mla.q_a_layernorm.weight,
            "w_q": absorbed.w_q,
            "norm_kv": mla.kv_a_layernorm.weight,
            "w_out": absorbed.w_out,
            "norm_ffn": absorbed.norm_ffn.weight,
        }
        if mla.indexer is not None:
            matrices |= {
                "index_q": mla.indexer.wq_b.weight,
                "index_norm": mla.indexer.k_norm.weight,
                "index_norm_bias": mla.indexer.k_norm.bias,
            }
            out.index_layer = self.cache.index_row[mla.layer]
        if absorbed.dense_mlp is not None:
            matrices |= dict(zip(("gate_up", "down"), absorbed.dense_mlp, strict=True))
            out.width = absorbed.dense_mlp[1].shape[1]
        if absorbed.moe is not None:
            gate, experts = absorbed.moe.gate, absorbed.moe.experts
            matrices |= {
                "router": gate.weight,
                "router_bias": gate.e_score_correction_bias,
                "expert_gate_up": experts.gate_up_proj,
                "expert_down": experts.down_proj,
            }
            out.expert_width = experts.down_proj.shape[-1]
        for name, matrix in matrices.items():
            setattr(out, name, self._address(matrix))
        return out

    def run(
        self, x: Tensor, positions: Sequence[int], T: int, routes: list[Tensor] | None = None, head: bool = True
    ) -> Tensor | None:
        """x (N, C), changed in place to the last hidden state → logits (N, V) where `head` asks for them.

        Token t of sequence b stands at positions[b] + t in row b of the cache; `routes` gets the experts chosen (N, K)
        of each MoE layer.

        Raises:
            InputError: the cache has no such place.
        """
        B, rows, max_len = len(positions), self.cache.latent.shape[1], self.cache.max_len
        if B > rows or min(positions) < 0 or max(positions) + T > max_len:
            raise InputError(
                f"a step of {B} sequences up to position {max(positions) + T - 1}: the cache holds {rows} of {max_len} "
                "positions; allocate it with more"
            )
        row = torch.arange(B).repeat_interleave(T)
        place = (torch.tensor(positions).unsqueeze(-1) + torch.arange(T)).view(-1)
        logits = x.new_empty(B * T, self.V) if head else None
        chosen = torch.empty(B * T, self.k, dtype=torch.int32)
        shares = [slice(b * T, (b + 1) * T) for b in range(B)]
        picked: dict[int, Tensor] = {}

        def work(share: Sequence[slice]) -> None:
            """Sequences that stand together, so that a share is one range of rows."""
            part = slice(share[0].start, share[-1].stop)
            n = part.stop - part.start
            experts = torch.empty(self.experts, n, self.K, dtype=torch.int64) if routes is not None else None
            if experts is not None:
                picked[part.start] = experts
            at = [t[part].data_ptr() for t in (row, place, x)]
            failed = self.code.decode(
                ctypes.byref(self.model),
                self.layers,
                ctypes.c_int64(len(self.layers)),
                ctypes.c_int64(n),
                *(ctypes.c_void_p(a) for a in at),
                ctypes.c_void_p(None if experts is None else experts.data_ptr()),
                ctypes.c_void_p(chosen[part].data_ptr()),
                ctypes.c_void_p(None if logits is None else logits[part].data_ptr()),
            )
            if failed:
                raise MemoryError(f"decoding {n} tokens: no room for their buffers")

        halves = max(1, min(B // 2, torch.get_num_threads()))
        cuts = [shares[i * B // halves : (i + 1) * B // halves] for i in range(halves)]

        def all_of(parts: Sequence[Sequence[slice]]) -> None:
            for part in parts:
                work(part)

        parallel_for(all_of, cuts, x.device)
        if routes is not None:
            whole = torch.cat([picked[start] for start in sorted(picked)], 1)
            routes.extend(whole.unbind(0))
        self.topk_indices = chosen
        return logits
