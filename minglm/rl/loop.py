"""The coordinator of an RL run: hands out groups, gathers samples, gives rewards, feeds the trainer, passes weights on.

It asks `minglm.rl.policy` what may happen next and computes nothing itself (no torch here), so all five modes are this one
loop. What it holds survives either worker: a rollout process that dies is started again and gets its requests again; a
trainer that dies resumes from its checkpoint and is given the batches since then once more. If the coordinator itself dies,
the same command goes on from the checkpoint, and the journal gives back the samples that finished after it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from minglm.errors import InputError
from minglm.rl.config import Settings
from minglm.rl.data_source import DataSource, Group, Sample
from minglm.rl.policy import Status
from minglm.rl.recorder import Record
from minglm.rl.rewards import Judge
from minglm.rl.supervisor import Crew, Member

WAIT_S = 0.25  # longest time between two looks at the clock
PATIENCE_S = 600.0  # without any progress, before the run gives up
MAX_REFUSALS = 3  # pushes of one version that may be refused before the run stops


class Loop:
    """One run in memory.

    Args:
        task: object with problem, reward, train_seed, heldout_seed (`minglm.rl.tasks`). tokenizer: of the model.
        crew, trainer, rollouts: workers that have been started (`minglm.rl.run`). ready: the trainer's first words: weights,
            version, config and, for a resumed run, the state that `_snapshot` made.
    """

    def __init__(
        self,
        settings: Settings,
        run_dir: Path,
        task,
        tokenizer,
        crew: Crew,
        trainer: Member,
        rollouts: list[Member],
        ready: dict,
        show: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings, self.policy, self.run_dir, self.show = settings, settings.policy(), run_dir, show
        self.tokenizer, self.config, self.max_positions = (
            tokenizer,
            ready["config"],
            ready["config"]["max_position_embeddings"],
        )
        self.source = DataSource(settings, task, self.encode)
        self.judge = Judge(settings, task, tokenizer)
        self.status, self.updates = Status(version=ready["version"]), 0
        self.open: dict[int, Group] = {}  # submitted, not complete; in order of submission
        self.ready: list[Group] = []  # complete, waiting for an update
        self.in_training: dict | None = None
        self.since_save: list[dict] = []  # training messages that a restarted trainer needs again
        self.weights: dict | None = None  # the newest that all rollout workers have
        self.aborting: set[str] | None = None  # workers whose partial groups are awaited
        self.evaluating: dict | None = None
        self.saving: dict | None = None
        self.reset_next = False
        self.crew, self.trainer, self.rollouts = crew, trainer, rollouts
        self.by_name = {m.name: m for m in rollouts}
        self.push: dict | None = self._new_push(ready["weights"], ready["version"])
        self.moved = time.monotonic()
        self.record = Record(settings, run_dir, ready["state"], show)
        crew.on_loss = self._lost
        for member in crew.members:
            self.record.event("started", worker=member.name, pid=member.handle.pid)
        if ready["state"]:
            self._restore(ready["state"])

    def _new_push(self, path: str, version: int) -> dict:
        """Weights on their way to the rollout workers, and whom they have not reached."""
        return {"path": path, "version": version, "sent": False, "left": set(self.by_name), "refused": 0}

    def encode(self, text: str) -> list[int]:
        """<|bos|><|user|>prompt<|assistant|>; refused where no answer would fit behind it."""
        ids = [self.tokenizer.bos, self.tokenizer.user, *self.tokenizer.encode(text), self.tokenizer.assistant]
        if len(ids) + self.settings.max_new_tokens > self.max_positions:
            raise InputError(
                f"prompt of {len(ids)} tokens and max_new_tokens={self.settings.max_new_tokens}: the model has "
                f"max_position_embeddings={self.max_positions}; lower max_new_tokens or the difficulty"
            )
        return ids

    # ------------------------------------------------------------------ running

    def run(self) -> dict:
        """All updates; returns a summary. Raises InputError for what cannot be mended."""
        try:
            if self.record.first_pass is None:
                self._evaluate()
            while self.updates < self.settings.updates or self.in_training or self.evaluating or self.push:
                self._advance()
                self._listen()
                if self.judge.solved:
                    self.show(self.judge.solved)
                    break
            if self.record.last_eval != self.updates:
                self._evaluate()
                while self.evaluating:
                    self._listen()
            self._save()
            while self.saving:
                self._listen()
            return self.record.summary(self.updates, self.judge, self.crew.restarts)
        finally:
            self.crew.dismiss()
            self.record.close()

    def _listen(self) -> None:
        heard = self.crew.listen(WAIT_S)
        now = time.monotonic()
        if any(message["got"] != "beat" or message.get("made") for _, message in heard):
            self.moved = now
        if now - self.moved > max(PATIENCE_S, 2 * self.settings.stall_s):
            raise InputError(
                f"nothing has happened for {now - self.moved:.0f} s though all workers live ({len(self.open)} groups open, "
                f"{len(self.ready)} ready); the same command resumes from the last checkpoint"
            )
        for member, message in heard:
            if member is self.trainer:
                getattr(self, "_trainer_" + message["got"], lambda m: None)(message)
            else:
                self._account(member, message)
                getattr(self, "_rollout_" + message["got"], lambda member, m: None)(member, message)
        self.crew.mend()

    def _advance(self) -> None:
        """Everything that may start now."""
        if self.push and not self.push["sent"] and (self.policy.continuous or not self.open):
            self._send_push()
        if len(self.source.buffer) and self.policy.continuous and self._may_submit():
            self._submit()  # what a checkpoint left unfinished is old: it is in flight again before the next update is chosen
        if (
            self.aborting is None
            and not self.in_training
            and not self.push
            and not self.evaluating
            and self.updates < self.settings.updates
        ):
            self._drop_stale()
            self._count()
            if self.policy.batch_is_ready(self.status) and not self._must_wait():
                if self.open and not self.policy.continuous:
                    self._abort()
                else:
                    self._train()
        if self._may_submit():
            self._submit()

    def _may_submit(self) -> bool:
        if self.aborting is not None or self.weights is None:
            return False
        if self.policy.continuous:
            return True
        free = not self.push and not self.evaluating
        return free and (self.policy.generates_ahead or not self.in_training)

    def _count(self) -> None:
        self.status.running, self.status.finished = len(self.open), len(self.ready)

    # ------------------------------------------------------------------ rollout

    def _submit(self) -> None:
        while True:
            self._count()
            training = 1 if self.in_training else 0
            needed = (
                (self.settings.updates - self.updates - training) * self.policy.prompts_per_batch
                - len(self.ready)
                - len(self.open)
            )
            room = self.policy.groups_to_submit(self.status)
            room = room if self.policy.aborts_at_target and needed > 0 else min(room, needed)
            if room <= 0:
                return
            for group in self.source.take(room):
                tokens = any(s.versions for s in group.samples)
                group.version = group.oldest_version if tokens else self.status.version
                self.open[group.index] = group
                member = min(self.rollouts, key=lambda m: len(m.groups))
                member.groups.add(group.index)
                self._send_group(member, group)
            for index in [i for i, g in self.open.items() if g.complete]:  # all of it came back from the journal
                self._complete(index)

    def _send_group(self, member: Member, group: Group) -> None:
        now, requests = self.record.now(), []
        for k, sample in enumerate(group.samples):
            if not sample.done:
                sample.segments.append([now, None, len(sample.tokens)])
                requests.append(
                    {
                        "id": f"{group.index}.{k}",
                        "prompt": group.prompt,
                        "seed": self.settings.sample_seed(group.index, k),
                        "tokens": sample.tokens,
                        "logprobs": sample.logprobs,
                        "versions": sample.versions,
                        "routes": sample.routes,
                    }
                )
        if requests:
            member.handle.send({"do": "submit", "requests": requests})

    def _account(self, member: Member, message: dict) -> None:
        if "made" in message:
            member.made += message["made"]
            self.record.rollout(message)

    def _take_in(self, member: Member, values: dict) -> tuple[Group, int, Sample] | None:
        """Put what came back into its sample; None for what nobody waits for any more."""
        index, k = map(int, values["id"].split("."))
        group = self.open.get(index)
        if group is None or group.samples[k].done:
            return None
        sample = group.samples[k]
        fresh = len(values["tokens"]) - len(sample.tokens)
        member.made -= fresh
        self.record.generated += fresh
        sample.tokens, sample.logprobs, sample.versions = values["tokens"], values["logprobs"], values["versions"]
        sample.routes, sample.reason = values["routes"], values["reason"]
        if sample.segments and sample.segments[-1][1] is None:
            start, _, before = sample.segments[-1]
            sample.segments[-1] = [start, self.record.now(), len(sample.tokens) - before]
        return group, k, sample

    def _rollout_finished(self, member: Member, message: dict) -> None:
        for values in message["requests"]:
            if taken := self._take_in(member, values):
                group, k, sample = taken
                self.record.journal.write(group.index, k, sample.to_dict())
                if group.complete:
                    self._complete(group.index)

    def _complete(self, index: int) -> None:
        group = self.open.pop(index)
        for member in self.rollouts:
            member.groups.discard(index)
        status = self.judge.judge(group)
        self.record.completed(group, status, self.judge)
        if status == "ready":
            self.ready.append(group)

    # ------------------------------------------------------------------ abort

    def _abort(self) -> None:
        """The target is reached and others still run: april keeps their parts; the rest lose what a filter's refill began."""
        self.aborting = set(self.by_name)
        for member in self.rollouts:
            member.handle.send({"do": "abort"})

    def _rollout_aborted(self, member: Member, message: dict) -> None:
        for values in message["requests"]:
            self._take_in(member, {**values, "reason": None})
        self._abort_ended(member)

    def _abort_ended(self, member: Member) -> None:
        if self.aborting is None:
            return
        self.aborting.discard(member.name)
        if self.aborting:
            return
        self.aborting = None
        groups, self.open = list(self.open.values()), {}
        for m in self.rollouts:
            m.groups.clear()
        self.record.aborted(groups, kept=self.policy.aborts_at_target)
        if self.policy.aborts_at_target:
            self.source.buffer.put_back(groups)

    def _drop_stale(self) -> None:
        for group in [g for g in self.ready if self.policy.too_stale(self.status.version, g.oldest_version)]:
            self.ready.remove(group)
            self.record.filtered_stale(group)

    # ------------------------------------------------------------------ training

    def _must_wait(self) -> bool:
        """Async: whether a group in flight would break the staleness bound if this update came before it."""
        if not self.settings.strict:
            return False
        return self.policy.must_wait(
            self.status, Counter(g.version for g in self.open.values()), Counter(g.version for g in self.ready)
        )

    def _train(self) -> None:
        if self.settings.strict and self.policy.mode == "async":
            self.ready.sort(
                key=lambda g: (g.version, g.index)
            )  # the oldest first: they may not wait for the next update
        batch, self.ready = self.ready[: self.policy.prompts_per_batch], self.ready[self.policy.prompts_per_batch :]
        if self.policy.discards_surplus:
            self.record.wasted(self.ready)
            self.ready = []
        update = self.updates + 1
        pushes = self.policy.syncs_weights_after(update)
        message = {
            "do": "train",
            "update": update,
            "version": self.status.version,
            "reset": self.reset_next,
            "push": self.status.version + 1 if pushes else None,
            "groups": [{"prompt": g.prompt, "samples": [s.to_dict() for s in g.samples]} for g in batch],
        }
        self.reset_next = pushes and self.policy.resets_optimizer_after_weight_sync
        self.status.accepted += len(batch)
        self.in_training = message
        self.since_save.append(message)
        self.record.training(batch, self.status.version)
        self.trainer.handle.send(message)

    def _trainer_trained(self, message: dict) -> None:
        if self.in_training is None or message["update"] != self.in_training["update"]:
            return  # a restarted trainer goes through what was already done
        sent, self.in_training = self.in_training, None
        self.updates = message["update"]
        if sent["push"] is not None:
            self.push = self._new_push(message["weights"], sent["push"])
        self.record.trained(
            message,
            self.updates,
            sent["push"] if sent["push"] is not None else self.status.version,
            self.judge,
            self.crew.restarts,
        )
        last = self.updates == self.settings.updates
        if self.updates % self.settings.checkpoint_every == 0 and not last:
            self._save()
        if self.settings.eval_every and self.updates % self.settings.eval_every == 0:
            self._evaluate()

    def _send_push(self) -> None:
        self.push["sent"] = True
        for member in self.rollouts:
            self._send_weights(member, self.push)

    def _send_weights(self, member: Member, weights: dict) -> None:
        member.handle.send(
            {
                "do": "push",
                "path": weights["path"],
                "version": weights["version"],
                "config": self.config,
                "max_len": self.max_positions,
            }
        )

    def _rollout_pushed(self, member: Member, message: dict) -> None:
        if self.push is None or message["version"] != self.push["version"]:
            return
        self.push["left"].discard(member.name)
        self.record.pushed(member.name, message)
        if not self.push["left"]:
            self.weights = {"path": self.push["path"], "version": self.push["version"]}
            self.status.version, self.push = self.push["version"], None

    def _rollout_refused(self, member: Member, message: dict) -> None:
        """A weights file was missing, torn or of another version: the trainer writes it again, a few times at most."""
        self.record.refused(member.name, message)
        if self.push is None or message["version"] != self.push["version"]:
            return
        self.push["refused"] += 1
        if self.push["refused"] > MAX_REFUSALS:
            raise InputError(
                f"{member.name}: refused the weights {self.push['refused']} times ({message['why']}); look at {self.run_dir / 'weights'}"
            )
        self.trainer.handle.send({"do": "publish", "version": self.push["version"]})

    def _trainer_published(self, message: dict) -> None:
        if self.push and self.push["version"] == message["version"]:
            self.push["path"] = message["weights"]
            for name in self.push["left"]:
                self._send_weights(self.by_name[name], self.push)

    # ------------------------------------------------------------------ workers come and go

    def _trainer_ready(self, message: dict) -> None:
        """A restarted trainer is back at its last checkpoint: it goes through the updates since then once more."""
        for again in self.since_save:
            if self.saving and again["update"] > self.saving["state"]["updates"]:
                self._save_again()
            if again["update"] > message["updates"]:
                self.trainer.handle.send(again)
        self._save_again()
        if self.evaluating:
            self.trainer.handle.send(self.evaluating)
        if self.push and self.push["refused"]:
            self.trainer.handle.send({"do": "publish", "version": self.push["version"]})

    def _trainer_started(self, message: dict) -> None:
        self.record.event("started", worker="trainer", pid=self.trainer.handle.pid)

    def _rollout_started(self, member: Member, message: dict) -> None:
        self.record.event("started", worker=member.name, pid=member.handle.pid)

    def _lost(self, member: Member, reason: str) -> None:
        """A worker has been started again: send what it needs; nothing that had finished is lost."""
        if member is self.trainer:
            self.record.fault(member.name, reason, lost_tokens=0, requeued=0)
            if self.saving:
                self.saving["again"] = False
            member.handle.send({"do": "hello"})  # its "ready" says from which update it goes on
            return
        groups = [g for g in self.open.values() if g.index in member.groups]
        waiting = [s for g in groups for s in g.samples if not s.done]
        self.record.fault(member.name, reason, lost_tokens=max(0, member.made), requeued=len(waiting))
        for sample in waiting:
            if sample.segments and sample.segments[-1][1] is None:
                sample.segments.pop()
        if weights := self.push if self.push and self.push["sent"] else self.weights:
            self._send_weights(member, weights)
        if self.aborting is not None and member.name in self.aborting:
            self._abort_ended(member)  # its parts go back as they were sent to it
        else:
            for group in groups:
                self._send_group(member, group)

    # ------------------------------------------------------------------ held-out problems, checkpoints

    def _evaluate(self) -> None:
        if not self.settings.eval_problems:
            return
        self.evaluating = {
            "do": "evaluate",
            "prompts": [self.encode(p.prompt) for p in self.judge.held_out],
            "max_len": self.max_positions,
            "stop": [self.tokenizer.eos],
        }
        self.trainer.handle.send(self.evaluating)

    def _trainer_evaluated(self, message: dict) -> None:
        if self.evaluating:
            self.evaluating = None
            self.record.evaluated(
                self.updates,
                self.judge.pass_at_1(message["answers"]["sampled"]),
                self.judge.pass_at_1(message["answers"]["greedy"]),
                message["seconds"],
            )

    def _save(self) -> None:
        self.record.before_checkpoint(self.updates)
        self.saving = {"do": "save", "state": self._snapshot()}
        self.trainer.handle.send(self.saving)

    def _save_again(self) -> None:
        """For a restarted trainer, between the updates where it belongs; once."""
        if self.saving and not self.saving.get("again"):
            self.saving["again"] = True
            self.trainer.handle.send(self.saving)

    def _trainer_saved(self, message: dict) -> None:
        self.saving = None
        self.since_save = [m for m in self.since_save if m["update"] > message["updates"]]

    def _snapshot(self) -> dict:
        """All that a resumed run needs beside weights and optimiser; draws follow from seeds and need no state."""
        buffered = list(self.source.buffer.waiting)
        return {
            "version": self.push["version"] if self.push else self.status.version,
            "updates": self.updates,
            "accepted": self.status.accepted,
            "position": self.source.position,
            "reset_next": self.reset_next,
            "ready": [g.to_dict() for g in self.ready],
            "unfinished": [g.to_dict() for g in (*self.open.values(), *buffered)],
            "counts": self.record.counts(),
            "judge": self.judge.counts(),
        }

    def _restore(self, state: dict) -> None:
        self.updates, self.status.accepted, self.status.version = state["updates"], state["accepted"], state["version"]
        self.source.position, self.reset_next = state["position"], state["reset_next"]
        self.ready = [self.source.restore(g) for g in state["ready"]]
        self.judge.restore(state["judge"])
        groups = [self.source.restore(g) for g in state["unfinished"]]
        for sample in (s for g in groups for s in g.samples):
            sample.segments = [s for s in sample.segments if s[1] is not None]
        self.source.buffer.put_back(groups)
        self.source.recovered = self.record.recover(state["updates"], state["version"], {g.index for g in self.ready})
