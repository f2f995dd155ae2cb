"""The training process: one update from a batch of groups, weights written for the rollout, held-out problems,
checkpoints.

Commands: Hello, Train, PublishWeights, Evaluate, SaveCheckpoint. Reports: TrainerReady, StepDone, WeightsPublished,
EvaluationDone, CheckpointSaved.

Indexer and MTP module are frozen, the router's balance bias too: RL moves what the rollout's log-probs depend on and
nothing else. Groups are sorted by length and cut into micro-batches of padded rows; loss and gradient are the mean over
the whole step's tokens, or sequences, however it is cut.

Shapes: N sequences, T tokens (prompt and response), V vocabulary, K experts chosen.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.engine import Engine
from minglm.inference.request import Request
from minglm.model.model import Model
from minglm.model.moe import Router
from minglm.rl.config import Settings
from minglm.rl.messages import (
    CheckpointSaved,
    Command,
    Evaluate,
    EvaluationDone,
    Hello,
    PublishWeights,
    Report,
    Routes,
    SaveCheckpoint,
    StepDone,
    Train,
    TrainerReady,
    TrainGroup,
    WeightsPublished,
    unexpected,
)
from minglm.rl.modes import micro_batches
from minglm.rl.objectives import Clip, counted, group_advantages, objective
from minglm.rl.worker import write_weights
from minglm.training import checkpoint
from minglm.training.optim import MuonAdamW
from minglm.training.process import deterministic

KEEP_WEIGHTS = 3  # weight files left in place: a worker that restarts reads the newest


@dataclass
class Row:
    """One sample, ready for a forward pass. Lists beside `tokens` have one entry per response token."""

    tokens: list[int]  # prompt and response
    start: int  # of the response in `tokens`
    behaviour: list[float]  # log-probs under the weights that sampled
    stale: list[bool]  # sampled by older weights than those that the update starts from
    advantage: float
    routes: Routes | None
    old_logprobs: Tensor | None = None  # (tokens − 1): log π_old, with several optimiser steps a batch

    @property
    def response_tokens(self) -> int:
        """Tokens that the loss counts."""
        return len(self.tokens) - self.start


@dataclass
class MicroBatch:
    """Rows padded to one length. Position i predicts token i+1; the mask counts responses alone."""

    rows: list[Row]
    tokens: Tensor  # (N, T) int64
    behaviour: Tensor  # (N, T−1)
    mask: Tensor  # (N, T−1) bool
    stale: Tensor  # (N, T−1) bool
    advantages: Tensor  # (N)


@dataclass
class WeightedStats:
    """Means of statistics over parts of unequal weight; those named …_max are maxima."""

    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, weight: float) -> None:
        """Count one part."""
        if name.endswith("_max"):
            self.sums[name] = max(self.sums.get(name, -math.inf), value)
            self.weights[name] = 1.0
        else:
            self.sums[name] = self.sums.get(name, 0.0) + value * weight
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        """One figure for each name."""
        return {name: value / max(self.weights[name], 1e-9) for name, value in self.sums.items()}


class Trainer:
    """Model and optimiser of an RL run, resumed from its newest checkpoint where there is one.

    Args:
        settings: `Settings.to_dict()`. run_dir: of the run. init_from: run or checkpoint folder of a new run's model.
        heartbeat: called during long work.

    Raises:
        InputError: no checkpoint to start from.
    """

    busy = False  # it works when it is told to, never by itself

    def __init__(
        self,
        settings: dict[str, Any],
        run_dir: str,
        init_from: str | None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.run_dir, self.heartbeat = Settings.from_dict(settings), Path(run_dir), heartbeat
        torch.set_num_threads(self.settings.threads)
        resumed = checkpoint.latest(self.run_dir)
        start = resumed or (checkpoint.latest(init_from) if init_from is not None else None)
        if start is None:
            raise InputError(f"--init-from {init_from}: no checkpoint there; give a run folder with a trained model")
        self.config = start.config
        torch.manual_seed(self.settings.seed)
        self.model = Model(self.config)
        self.model.load_state_dict(start.model)
        self.model.train()
        self.state: dict[str, Any] | None = resumed.state["rl"] if resumed else None
        self.updates: int = resumed.step if resumed else 0
        self.version: int = self.state["version"] if self.state else 0
        for name, p in self.model.named_parameters():
            p.requires_grad_(".indexer." not in name and not name.startswith("mtp."))
        self.optimizer = self._new_optimizer()
        heartbeat()
        if resumed:
            self.optimizer.load_state_dict(resumed.optimizer)
            resumed.restore_rng()

    def _new_optimizer(self) -> MuonAdamW:
        s = self.settings
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        return MuonAdamW(named, self.config, s.lr, weight_decay=s.weight_decay, muon=s.muon)

    def step(self) -> Iterator[Report]:
        """Nothing: see `busy`."""
        return iter(())

    def handle(self, command: Command) -> Iterator[Report]:
        """Obey a command and report that it is done."""
        match command:
            case Hello():
                yield TrainerReady(
                    updates=self.updates,
                    version=self.version,
                    config=self.config.to_dict(),
                    weights=self.publish(self.version),
                    state=self.state,
                    hf=self.config.to_hf(),
                )
            case Train():
                yield self.train(command)
            case PublishWeights(version=version):
                yield WeightsPublished(self.publish(version), version)
            case Evaluate():
                yield self.evaluate(command)
            case SaveCheckpoint(state=state):
                self.save(state)
                yield CheckpointSaved(self.updates)
            case _:
                raise unexpected(command, "the trainer")

    # ------------------------------------------------------------------ one update

    def train(self, command: Train) -> StepDone:
        """One update."""
        started = time.perf_counter()
        if command.reset_optimizer:
            self.optimizer = self._new_optimizer()
        rows = self._rows(command.groups, command.version)
        self.model.train()
        stats = WeightedStats()
        with deterministic():
            if self.settings.minibatches > 1:  # π_old before the first of several optimiser steps
                self._remember_old(rows)
            for part in self._minibatches(rows):
                for name, value in self._optimiser_step(part).items():
                    stats.add(name, value, 1.0)
        self.updates = command.update
        train_s, weights, sync_started = time.perf_counter() - started, None, time.perf_counter()
        if command.sync_version is not None:
            self.version = command.sync_version
            weights = self.publish(self.version)
        return StepDone(
            update=self.updates,
            stats=stats.means(),
            seconds=train_s,
            weights=weights,
            weight_sync_s=time.perf_counter() - sync_started,
            tokens=sum(len(r.tokens) for r in rows),
            trained_tokens=sum(r.response_tokens for r in rows),
        )

    def _rows(self, groups: Sequence[TrainGroup], version: int) -> list[Row]:
        """Samples with their advantage; samples without a token are left out."""
        rows = []
        for group in groups:
            rewards = torch.tensor([[sample.reward for sample in group.samples]], dtype=torch.float32)
            for sample, advantage in zip(group.samples, group_advantages(rewards)[0].tolist(), strict=True):
                if sample.tokens:
                    rows.append(
                        Row(
                            tokens=group.prompt + sample.tokens,
                            start=len(group.prompt),
                            behaviour=sample.logprobs,
                            stale=[v < version for v in sample.versions],
                            advantage=advantage,
                            routes=sample.routes,
                        )
                    )
        if not rows:
            raise InputError("a batch without a single sampled token: raise max_new_tokens or look at the model")
        return rows

    def _minibatches(self, rows: list[Row]) -> list[list[Row]]:
        n = min(self.settings.minibatches, len(rows))
        return [rows[i::n] for i in range(n)]

    def _micro(self, rows: list[Row]) -> list[MicroBatch]:
        """Padded micro-batches, rows sorted by length: as many as fit when padded to the longest."""
        parts = micro_batches((len(r.tokens) for r in rows), self.settings.micro_tokens)
        in_order = iter(sorted(rows, key=lambda r: len(r.tokens)))
        return [self._pad(list(islice(in_order, len(part)))) for part in parts]

    @torch.no_grad()
    def _remember_old(self, rows: list[Row]) -> None:
        for micro in self._micro(rows):
            for row, logp in zip(micro.rows, self.logprobs(micro)[0], strict=True):
                row.old_logprobs = logp[: len(row.tokens) - 1].clone()
            self.heartbeat()

    def _optimiser_step(self, rows: list[Row]) -> dict[str, float]:
        s = self.settings
        micro = self._micro(rows)
        clip, loss_of = Clip(**s.objective_args), objective(s.objective)
        tokens = sum(counted(m.mask, "token") for m in micro)
        divisor = sum(counted(m.mask, clip.average) for m in micro)
        self.optimizer.zero_grad()
        stats = WeightedStats()
        for m in micro:
            logp, entropy = self.logprobs(m)
            # With one optimiser step for the batch, π_old is π before it: no second forward is needed.
            old = logp.detach() if s.minibatches == 1 else self._old(m)
            loss, figures = loss_of(logp, old, m.behaviour, m.advantages, m.mask, clip=clip, stale=m.stale)
            share = counted(m.mask, clip.average) / max(divisor, 1.0)
            if loss.requires_grad:
                (loss * share).backward()
            stats.add("loss", float(loss.detach()), share)
            del figures["tokens"]  # a count; `StepDone` has the whole batch's
            figures["entropy"] = float(entropy[m.mask].mean()) if bool(m.mask.any()) else 0.0
            for name, value in figures.items():  # means over tokens
                stats.add(name, value, counted(m.mask, "token") / max(tokens, 1.0))
            mismatch = (old - m.behaviour).abs()[m.mask & ~m.stale]  # of trainer and rollout on the very same weights
            if mismatch.numel():
                stats.add("mismatch", float(mismatch.mean()), mismatch.numel() / max(tokens, 1.0))
            self.heartbeat()
        norm = float(self.optimizer.clip_grad_norm(s.clip))
        if not math.isfinite(norm):
            raise InputError(
                f"update {self.updates + 1}: the gradient's norm is {norm}; lower lr={s.lr:g}, or use an objective "
                "that corrects"
            )
        self.optimizer.step()
        return stats.means() | {"grad_norm": norm}

    def _pad(self, rows: list[Row]) -> MicroBatch:
        N, T = len(rows), max(len(r.tokens) for r in rows)
        tokens = torch.zeros(N, T, dtype=torch.int64)
        behaviour = torch.zeros(N, T - 1)
        mask, stale = torch.zeros(N, T - 1, dtype=torch.bool), torch.zeros(N, T - 1, dtype=torch.bool)
        for i, r in enumerate(rows):
            response = slice(r.start - 1, len(r.tokens) - 1)  # the positions that predicted it
            tokens[i, : len(r.tokens)] = torch.tensor(r.tokens)
            behaviour[i, response] = torch.tensor(r.behaviour)
            mask[i, response] = True
            stale[i, response] = torch.tensor(r.stale)
        if self.settings.mask_off_policy:
            mask &= ~stale
        return MicroBatch(rows, tokens, behaviour, mask, stale, torch.tensor([r.advantage for r in rows]))

    def logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """log π of each next token (N, T−1), with gradient, and the entropy of each prediction (N, T−1), without."""
        tokens = micro.tokens
        with self._replayed(micro):
            logits = self.model(tokens[:, :-1], mode="sparse").logits
        logp = (logits.float() / self.settings.temperature).log_softmax(-1)  # of the distribution that was sampled from
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, tokens[:, 1:, None]).squeeze(-1), entropy

    def _old(self, micro: MicroBatch) -> Tensor:
        out = torch.zeros_like(micro.behaviour)
        for i, r in enumerate(micro.rows):
            assert r.old_logprobs is not None, "π_old is remembered before the first optimiser step"
            out[i, : len(r.old_logprobs)] = r.old_logprobs
        return out

    @contextlib.contextmanager
    def _replayed(self, micro: MicroBatch) -> Iterator[None]:
        """Make every router choose what the rollout chose, where it was recorded; elsewhere (padding) it chooses
        itself."""
        if not self.settings.routing_replay:
            yield
            return
        routers = [module for layer in self.model.layers for module in layer.modules() if isinstance(module, Router)]
        N, T = micro.tokens.shape[0], micro.tokens.shape[1] - 1
        K = self.config.num_experts_per_tok
        forced = torch.full((len(routers), N, T, K), -1, dtype=torch.int64)
        for i, r in enumerate(micro.rows):
            if r.routes:
                routes = torch.tensor(
                    r.routes
                )  # (response tokens, MoE layers, K): of the positions that predicted them
                first = r.start - 1
                forced[:, i, first : first + len(routes)] = routes.transpose(0, 1)
        for router, topk in zip(routers, forced, strict=True):
            router.forward = _Replay(router, topk.reshape(N * T, K))  # type: ignore[method-assign] # for this pass only
        try:
            yield
        finally:
            for router in routers:
                del router.forward

    # ------------------------------------------------------------------ the rest

    @torch.no_grad()
    def evaluate(self, command: Evaluate) -> EvaluationDone:
        """Responses to held-out prompts, sampled as the rollout samples and then greedy, by the engine that rolls
        out."""
        started, s = time.perf_counter(), self.settings
        self.model.eval()
        prompts = command.prompts
        engine = Engine(
            self.model, max_batch=min(s.max_batch, 2 * len(prompts)), max_len=command.max_len, mode="sparse"
        )
        responses: dict[str, list[list[int]]] = {}
        for kind, temperature in (("sampled", s.temperature), ("greedy", 0.0)):
            responses[kind] = [[] for _ in prompts]
            for number, prompt in enumerate(prompts):
                engine.submit(
                    Request(
                        id=f"{kind}.{number}",
                        prompt=prompt,
                        max_new_tokens=s.max_new_tokens,
                        temperature=temperature,
                        seed=number,
                        stop=tuple(command.stop),
                    )
                )
        left = 2 * len(prompts)
        while left:
            for request in engine.step():
                kind, _, index = request.id.partition(".")
                responses[kind][int(index)], left = list(request.tokens), left - 1
            self.heartbeat()
        return EvaluationDone(
            responses["sampled"], responses["greedy"], self.updates, seconds=time.perf_counter() - started
        )

    def publish(self, version: int) -> str:
        """Write the weights for the rollout; returns the file's path."""
        folder = self.run_dir / "weights"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"version_{version:08d}.safetensors"
        write_weights(path, self.model.state_dict(), version)
        ours = (p for p in folder.glob("version_*.safetensors") if p.stem.removeprefix("version_").isdigit())
        for old in sorted(ours)[:-KEEP_WEIGHTS]:
            old.unlink(missing_ok=True)
        return str(path)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint with the coordinator's state in it.

        Raises:
            EOFError: the coordinator has gone; whoever resumes the run owns the folder now.
        """
        coordinator = multiprocessing.parent_process()
        if coordinator is not None and not coordinator.is_alive():
            raise EOFError("the coordinator has gone")
        checkpoint.save(
            self.run_dir,
            self.updates,
            self.config,
            self.model.state_dict(),
            self.optimizer.state_dict(),
            {"rl": state, "recipe": None, "seed": self.settings.seed},
        )


class _Replay:
    """A router's forward whose choice is recorded, -1 where it is free."""

    def __init__(self, router: Router, recorded: Tensor) -> None:
        self.router, self.recorded = router, recorded  # (N·T, K)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, _, scores = Router.forward(self.router, x)
        topk = torch.where(self.recorded < 0, own, self.recorded)
        gates = scores.gather(-1, topk)
        return topk, gates * (self.router.scale / (gates.sum(-1, keepdim=True) + 1e-20)), scores
