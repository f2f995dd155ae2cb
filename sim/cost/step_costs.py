"""What one training step is made of: the hand-over from the analytical cost model to the simulator.

The cost model (operators, kernels, collectives, plan) fills a `StepCosts`; the discrete-event simulator (pipeline
schedules, step, campaign) spends it and never asks about models or chips. Times are seconds, sizes bytes, all for one
micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """One model chunk (a stage, or a virtual stage) on one pipeline rank, for one micro-batch.

    `*_s` is compute with the collectives that nothing hides (tensor parallel, unhidden expert all-to-all) included.
    `*_comm_s` is the part of that which a schedule *can* hide behind another micro-batch's compute (DualPipe's
    all-to-all): a schedule without such overlap pays it in full, and it is already inside `*_s`.
    Full recomputation is part of `backward_input_s`.
    """

    forward_s: float
    backward_input_s: float  # gradient of the activations: what the previous stage waits for
    backward_weight_s: float  # gradient of the weights: may be deferred (zero-bubble)
    forward_comm_s: float = 0.0
    backward_comm_s: float = 0.0

    @property
    def backward_s(self) -> float:
        """Both gradients."""
        return self.backward_input_s + self.backward_weight_s


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Everything one replica does in a training step.

    chunks[rank][v]: cost of virtual stage v on pipeline rank `rank`; model order is v-major (chunk v of rank r is stage
    v·P + r), except DualPipe-V where rank r holds stages r and 2P−1−r.
    """

    chunks: tuple[tuple[ChunkCost, ...], ...]
    micro_batches: int  # per replica and step
    p2p_s: float  # activation (or its gradient) to the next stage, unloaded link
    p2p_bytes: float
    grad_reduce_s: float  # data-parallel gradient reduction per rank, the slowest rank, unhidden length
    param_gather_s: float  # ZeRO parameter all-gather per step, the slowest rank
    overlap_grad_reduce: bool  # whether reduction may run under the last backward passes
    optimizer_s: float
    fixed_s: float = 0.0  # per-step host work that nothing hides (data, logging, launch)
    tokens: int = 0  # tokens per step over all replicas
    replicas: int = 1  # data-parallel width
    chips_per_rank: int = 1  # TP × CP chips that act as one pipeline rank

    @property
    def ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.chunks)
