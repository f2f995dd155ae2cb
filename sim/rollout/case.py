"""What goes into a rollout simulation: `Case`. Units: seconds and tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minglm.errors import InputError
from minglm.rl.modes import Policy, train_load
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.lengths import Lengths


@dataclass(frozen=True)
class Case:
    """Everything that decides a run. `sim.rollout.scenario` reads one from a file and checks it."""

    policy: Policy
    samples_per_prompt: int
    lengths: Lengths
    engines: int
    curve: DecodeCurve
    prefill_s_per_token: float = 0.0
    prefill_fixed_s: float = 0.0
    kv_limit: float | None = None  # cached tokens that an engine holds
    max_running: int | None = None  # requests that an engine runs at once
    train_s_per_token: float = 0.0  # prompt and response tokens of the batch
    train_fixed_s: float = 0.0  # per update, whatever its size
    weight_sync_s: float = 0.0
    overhead_s: float = 0.0  # per step after the rollout: rewards, reference log-probs, switching; trainer busy
    parts: int = 1  # updates between two weight syncs that start as soon as their share of groups is there
    filter_keep: float = 1.0  # share of groups that the dynamic filter keeps
    colocated: bool = False  # the same chips roll out and train
    interruptible: bool = True  # a weight sync goes into running requests; otherwise it waits until all have ended
    reuse_kv_cache: bool = False  # caches survive weight syncs and aborts; otherwise contexts are prefilled again
    strict: bool = True  # async: wait for the oldest groups, so that η is a bound (`Policy.must_wait`)
    steps: int = 4
    warmup: int = 0  # first steps that figures leave out
    seed: int = 0
    chips_per_engine: int = 1
    train_chips: int = 0
    watch: int = 0  # engines whose batch is recorded for the picture
    name: str = "rollouts"
    topk: int | None = (
        None  # keys that sparse attention reads, for a curve that knows what choosing them costs (`beyond`)
    )
    train_s_per_square: float = 0.0  # times the sum of squared row lengths, as attention costs
    micro_tokens: int | None = (
        None  # the trainer pads rows into passes of so many tokens and pays for the padding; None: it pads nothing
    )
    train_s_per_pass: float = 0.0  # of each such pass, whatever its size
    kv_offload_s: float = 0.0  # an aborted request's cache swapped out and back in
    decode_interference: float = (
        1.0  # where both share a machine: an engine is so many times slower while the trainer works,
    )
    train_interference: float = 1.0  # and an update so many times slower while engines decode
    placement: str = "sample"  # which engine a sample goes to: `sim.rollout.placement.PLACEMENTS`
    share_prompts: bool = False  # samples of a group admitted together prefill their prompt once, one call for all

    def train_seconds(self, rows: list[int]) -> float:
        """Seconds of an update on rows of so many tokens, prompts included."""
        passes, padded, squares = train_load(rows, self.micro_tokens)
        return (
            self.train_fixed_s / self.parts
            + self.train_s_per_pass * passes
            + self.train_s_per_token * padded
            + self.train_s_per_square * squares
        )

    @property
    def chips(self) -> int:
        """Of the whole case."""
        rollout = self.engines * self.chips_per_engine
        return max(rollout, self.train_chips) if self.colocated else rollout + self.train_chips

    def mode(self, mode: str, **rules) -> Case:
        """The same case under another mode."""
        return replace(self, policy=Policy(mode, self.policy.prompts_per_batch, **rules))

    def check(self) -> Case:
        """Raises InputError for what cannot run."""
        longest = self.lengths.longest + max(self.lengths.prompts, default=self.lengths.prompt)
        for name, low in (
            ("samples_per_prompt", 1),
            ("engines", 1),
            ("parts", 1),
            ("steps", 1),
            ("warmup", 0),
            ("chips_per_engine", 0),
            ("train_chips", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"{name}={value!r}: must be a whole number of at least {low}")
        if self.kv_limit is not None and longest > self.kv_limit:
            raise InputError(
                f"kv_limit={self.kv_limit:,.0f} tokens: one trajectory may need {longest:,} (prompt and longest "
                "response); "
                f"give more cache, more chips an engine or a lower maximum length"
            )
        if not 0.0 < self.filter_keep <= 1.0:
            raise InputError(
                f"filter_keep={self.filter_keep:g}: the share of groups that the filter keeps must be above 0 and at "
                "most 1"
            )
        if self.warmup >= self.steps:
            raise InputError(f"warmup={self.warmup}: leaves nothing of {self.steps} steps; give more steps")
        if self.parts > 1 and self.policy.mode != "async":
            raise InputError(
                f"parts={self.parts} with mode {self.policy.mode!r}: only async trains on parts of a batch as they "
                "come; use mode async, with max_staleness 0 for a stream without stale data"
            )
        if self.policy.prompts_per_batch % self.parts:
            raise InputError(f"parts={self.parts}: must divide the {self.policy.prompts_per_batch} prompts of a batch")
        if self.colocated and (self.policy.continuous or self.policy.generates_ahead):
            raise InputError(
                f"mode {self.policy.mode!r} colocated: rollout and training run at the same time and need chips of "
                "their own; "
                f"set colocated: false, or use sync or april"
            )
        return self
