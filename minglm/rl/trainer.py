"""The training process: one update from a batch of groups, weights written for the rollout, held-out problems, checkpoints.

    do: hello, train {update, groups, version, push, reset}, publish, evaluate {prompts}, save {state}
    got: ready, trained, published, evaluated, saved

Indexer and MTP module are frozen, the router's balance bias too: RL moves what the rollout's log-probs depend on and nothing
else. Groups are sorted by length and cut into micro-batches of padded rows; each token counts once, whatever its batch.

Shapes: N sequences, T tokens (prompt and answer), V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.engine import Engine, Request
from minglm.model.model import Model
from minglm.model.moe import Router
from minglm.rl.config import Settings
from minglm.rl.objectives import Clip, group_advantages, objective
from minglm.rl.policy import micro_batches
from minglm.rl.worker import write_weights
from minglm.training import checkpoint
from minglm.training.loop import deterministic
from minglm.training.optim import MuonAdamW

KEEP_WEIGHTS = 3  # weight files left in place: a worker that restarts reads the newest


class Trainer:
    """Model and optimiser of an RL run, resumed from its newest checkpoint where there is one."""

    def __init__(
        self, settings: dict, run_dir: str, init_from: str | None, beat: Callable[[], None] = lambda: None
    ) -> None:
        self.settings, self.run_dir, self.beat, self.busy = Settings.from_dict(settings), Path(run_dir), beat, False
        torch.set_num_threads(self.settings.threads)
        resumed = checkpoint.latest(self.run_dir)
        start = resumed or checkpoint.latest(init_from)
        if start is None:
            raise InputError(f"--init-from {init_from}: no checkpoint there; give a run folder with a trained model")
        self.config = start.config
        torch.manual_seed(self.settings.seed)
        self.model = Model(self.config)
        self.model.load_state_dict(start.model)
        self.model.train()
        self.state = resumed.state["rl"] if resumed else None
        self.updates = resumed.step if resumed else 0
        self.version = self.state["version"] if resumed else 0
        for name, p in self.model.named_parameters():
            p.requires_grad_(".indexer." not in name and not name.startswith("mtp."))
        self.optimizer = self._new_optimizer()
        beat()
        if resumed:
            self.optimizer.load_state_dict(resumed.optimizer)
            resumed.restore_rng()

    def _new_optimizer(self) -> MuonAdamW:
        s = self.settings
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        return MuonAdamW(named, self.config, s.lr, weight_decay=s.weight_decay, muon=s.muon)

    def step(self) -> Iterator[dict]:
        return iter(())

    def handle(self, message: dict) -> Iterator[dict]:
        if message["do"] == "hello":
            yield {
                "got": "ready",
                "updates": self.updates,
                "version": self.version,
                "config": self.config.to_dict(),
                "weights": self.publish(self.version),
                "state": self.state,
                "hf": self.config.to_hf(),
            }
        elif message["do"] == "train":
            yield self.train(message)
        elif message["do"] == "publish":
            yield {"got": "published", "weights": self.publish(message["version"]), "version": message["version"]}
        elif message["do"] == "evaluate":
            yield self.evaluate(message)
        elif message["do"] == "save":
            self.save(message["state"])
            yield {"got": "saved", "updates": self.updates}

    # ------------------------------------------------------------------ one update

    def train(self, message: dict) -> dict:
        """One update. `groups`: lists of samples with tokens, logprobs, versions, reward; `prompt` of each group."""
        started, s = time.perf_counter(), self.settings
        if message["reset"]:
            self.optimizer = self._new_optimizer()
        rows = self._rows(message["groups"], message["version"])
        self.model.train()
        totals: dict[str, float] = {}
        with deterministic():
            if s.minibatches > 1:  # π_old before the first of several optimiser steps
                self._remember_old(rows)
            for part in self._minibatches(rows):
                stats = self._optimiser_step(part)
                for name, (value, weight) in stats.items():
                    kind = max if name.endswith("_max") else lambda a, b: a + b
                    totals[name] = kind(totals.get(name, 0.0), value if name.endswith("_max") else value * weight)
                    totals["weight." + name] = totals.get("weight." + name, 0.0) + weight
        self.updates = message["update"]
        out = {
            k: v if k.endswith("_max") else v / max(totals["weight." + k], 1e-9)
            for k, v in totals.items()
            if not k.startswith("weight.")
        }
        train_s, weights, push_started = time.perf_counter() - started, None, time.perf_counter()
        if message["push"] is not None:
            self.version = message["push"]
            weights = self.publish(self.version)
        return {
            "got": "trained",
            "update": self.updates,
            "stats": out,
            "seconds": train_s,
            "weights": weights,
            "weight_sync_s": time.perf_counter() - push_started,
            "tokens": sum(len(r["tokens"]) for r in rows),
            "trained_tokens": sum(len(r["answer"]) for r in rows),
        }

    def _rows(self, groups: list[dict], version: int) -> list[dict]:
        """Samples with their advantage, as rows for a forward pass."""
        rows = []
        for group in groups:
            rewards = torch.tensor([[sample["reward"] for sample in group["samples"]]], dtype=torch.float32)
            for sample, advantage in zip(group["samples"], group_advantages(rewards)[0].tolist()):
                if sample["tokens"]:
                    rows.append(
                        {
                            "tokens": group["prompt"] + sample["tokens"],
                            "start": len(group["prompt"]),
                            "answer": sample["tokens"],
                            "behaviour": sample["logprobs"],
                            "stale": [v < version for v in sample["versions"]],
                            "advantage": advantage,
                            "routes": sample.get("routes"),
                        }
                    )
        if not rows:
            raise InputError("a batch without a single sampled token: raise max_new_tokens or look at the model")
        return rows

    def _minibatches(self, rows: list[dict]) -> list[list[dict]]:
        n = min(self.settings.minibatches, len(rows))
        return [rows[i::n] for i in range(n)]

    def _micro(self, rows: list[dict]) -> list[dict]:
        """Padded micro-batches, rows sorted by length: as many as fit when padded to the longest."""
        parts = micro_batches((len(r["tokens"]) for r in rows), self.settings.micro_tokens)
        in_order = iter(sorted(rows, key=lambda r: len(r["tokens"])))
        return [self._pad(list(islice(in_order, len(part)))) for part in parts]

    @torch.no_grad()
    def _remember_old(self, rows: list[dict]) -> None:
        for m in self._micro(rows):
            for r, logp in zip(m["rows"], self.logprobs(m)[0]):
                r["old"] = logp[: len(r["tokens"]) - 1].clone()
            self.beat()

    def _optimiser_step(self, rows: list[dict]) -> dict[str, tuple[float, float]]:
        s = self.settings
        micro = self._micro(rows)
        counted = sum(float(m["mask"].sum()) for m in micro)
        self.optimizer.zero_grad()
        stats: dict[str, list[tuple[float, float]]] = {}
        clip, loss_of = Clip(**s.objective_args), objective(s.objective)
        for m in micro:
            logp, entropy = self.logprobs(m)
            # With one optimiser step for the batch, π_old is π before it: no second forward is needed.
            old = logp.detach() if s.minibatches == 1 else self._old(m)
            loss, found = loss_of(logp, old, m["behaviour"], m["advantages"], m["mask"], clip=clip, stale=m["stale"])
            share = float(m["mask"].sum()) / max(counted, 1.0)
            if loss.requires_grad:
                (loss * share).backward()
            fresh = m["mask"] & ~m["stale"]
            gap = (old - m["behaviour"]).abs()[fresh]
            found |= {
                "loss": float(loss.detach()),
                "entropy": float(entropy[m["mask"]].mean()) if bool(m["mask"].any()) else 0.0,
            }
            for name, value in found.items():
                stats.setdefault(name, []).append((value, share))
            if gap.numel():
                stats.setdefault("mismatch", []).append((float(gap.mean()), gap.numel() / max(counted, 1.0)))
            self.beat()
        norm = float(self.optimizer.clip_grad_norm(s.clip))
        if norm != norm or norm == float("inf"):
            raise InputError(
                f"update {self.updates + 1}: the gradient's norm is {norm}; lower lr={s.lr:g}, or use an objective that corrects"
            )
        self.optimizer.step()
        out = {
            name: (max(v for v, _ in found), 1.0)
            if name.endswith("_max")
            else (sum(v * w for v, w in found) / sum(w for _, w in found), 1.0)
            for name, found in stats.items()
        }
        return out | {"grad_norm": (norm, 1.0)}

    def _pad(self, rows: list[dict]) -> dict:
        """Rows as tensors (N, T−1): position i predicts token i+1; the mask counts answers alone."""
        N, T = len(rows), max(len(r["tokens"]) for r in rows)
        tokens = torch.zeros(N, T, dtype=torch.int64)
        behaviour, mask, stale = (
            torch.zeros(N, T - 1),
            torch.zeros(N, T - 1, dtype=torch.bool),
            torch.zeros(N, T - 1, dtype=torch.bool),
        )
        for i, r in enumerate(rows):
            here = slice(r["start"] - 1, len(r["tokens"]) - 1)
            tokens[i, : len(r["tokens"])] = torch.tensor(r["tokens"])
            behaviour[i, here], mask[i, here], stale[i, here] = (
                torch.tensor(r["behaviour"]),
                True,
                torch.tensor(r["stale"]),
            )
        if self.settings.mask_off_policy:
            mask &= ~stale
        return {
            "tokens": tokens,
            "behaviour": behaviour,
            "mask": mask,
            "stale": stale,
            "advantages": torch.tensor([r["advantage"] for r in rows]),
            "rows": rows,
        }

    def logprobs(self, m: dict) -> tuple[Tensor, Tensor]:
        """log π of each next token (N, T−1), with gradient, and the entropy of each prediction, without."""
        tokens = m["tokens"]
        with self._replayed(m):
            logits = self.model(tokens[:, :-1], mode="sparse").logits
        logp = (logits.float() / self.settings.temperature).log_softmax(-1)  # of the distribution that was sampled from
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, tokens[:, 1:, None]).squeeze(-1), entropy

    def _old(self, m: dict) -> Tensor:
        out = torch.zeros_like(m["behaviour"])
        for i, r in enumerate(m["rows"]):
            out[i, : len(r["old"])] = r["old"]
        return out

    @contextlib.contextmanager
    def _replayed(self, m: dict) -> Iterator[None]:
        """Make every router choose what the rollout chose, where it was recorded; elsewhere (padding) it chooses itself."""
        if not self.settings.routing_replay:
            yield
            return
        routers = [
            layer.mlp.gate for layer in self.model.layers if isinstance(getattr(layer.mlp, "gate", None), Router)
        ]
        N, T = m["tokens"].shape[0], m["tokens"].shape[1] - 1
        K = self.config.num_experts_per_tok
        forced = torch.full((len(routers), N, T, K), -1, dtype=torch.int64)
        for i, r in enumerate(m["rows"]):
            if r["routes"]:
                routes = torch.tensor(
                    r["routes"]
                )  # (answer tokens, MoE layers, K): of the positions that predicted them
                first = r["start"] - 1
                forced[:, i, first : first + len(routes)] = routes.transpose(0, 1)
        for router, choice in zip(routers, forced):
            router.forward = _Replay(router, choice.reshape(N * T, K))
        try:
            yield
        finally:
            for router in routers:
                del router.forward

    # ------------------------------------------------------------------ the rest

    @torch.no_grad()
    def evaluate(self, message: dict) -> dict:
        """Answers to held-out prompts, sampled as the rollout samples and then greedy, by the engine that rolls out."""
        started, s = time.perf_counter(), self.settings
        self.model.eval()
        prompts, answers = message["prompts"], {}
        engine = Engine(
            self.model, max_batch=min(s.max_batch, 2 * len(prompts)), max_len=message["max_len"], mode="sparse"
        )
        for kind, temperature in (("sampled", s.temperature), ("greedy", 0.0)):
            answers[kind] = [[] for _ in prompts]
            for i, prompt in enumerate(prompts):
                engine.submit(
                    Request(
                        id=f"{kind}.{i}",
                        prompt=prompt,
                        max_new_tokens=s.max_new_tokens,
                        temperature=temperature,
                        top_p=s.top_p if temperature else 1.0,
                        seed=i,
                        stop=tuple(message["stop"]),
                    )
                )
        left = 2 * len(prompts)
        while left:
            for request in engine.step():
                kind, _, i = request.id.partition(".")
                answers[kind][int(i)], left = list(request.tokens), left - 1
            self.beat()
        return {
            "got": "evaluated",
            "answers": answers,
            "update": self.updates,
            "seconds": time.perf_counter() - started,
        }

    def publish(self, version: int) -> str:
        """Write the weights for the rollout; returns the file's path."""
        folder = self.run_dir / "weights"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"version_{version:08d}.safetensors"
        write_weights(path, self.model.state_dict(), version)
        for old in sorted(folder.glob("version_*.safetensors"))[:-KEEP_WEIGHTS]:
            old.unlink(missing_ok=True)
        return str(path)

    def save(self, state: dict) -> None:
        checkpoint.save(
            self.run_dir,
            self.updates,
            self.config,
            self.model.state_dict(),
            self.optimizer.state_dict(),
            {"rl": state, "recipe": None, "seed": self.settings.seed},
        )


class _Replay:
    """A router's forward whose choice is given, -1 where it is free."""

    def __init__(self, router: Router, choice: Tensor) -> None:
        self.router, self.choice = router, choice

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, _, scores = Router.forward(self.router, x)
        chosen = torch.where(self.choice < 0, own, self.choice)
        gates = scores.gather(-1, chosen)
        return chosen, gates * (self.router.scale / (gates.sum(-1, keepdim=True) + 1e-20)), scores
