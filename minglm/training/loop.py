"""The training loop of every stage: read a recipe, run its steps, and leave a run folder that any kill can resume.

    runs/NAME/  recipe.yaml config.json versions.json tokenizer.json   what was trained, on what, with what
                metrics.csv expert_load.csv                            one row a step; load per layer and expert
                checkpoints/                                           see minglm/training/checkpoint.py
    runs/data/  token shards, shared by the runs beside it

Everything but the two timing columns of metrics.csv follows from recipe and seed, bit for bit on one machine, however
often the run is killed and resumed: the batch of a step depends on the step alone, and a checkpoint holds the rest.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minglm import atomic
from minglm.data import shards
from minglm.errors import InputError
from minglm.model.counts import StepCounts
from minglm.model.model import Model
from minglm.quant.formats import Spec
from minglm.quant.qat import FakeQuant
from minglm.runtime import device as devices
from minglm.runtime import machine, run_folder, run_lock
from minglm.training import checkpoint, data, memory, metrics
from minglm.training import recipe as recipes
from minglm.training.halves import backward, halves
from minglm.training.optim import MuonAdamW, cosine_with_warmup
from minglm.training.process import Interrupted, deterministic, finish_step_on_sigint
from minglm.training.recipe import Recipe

LOAD_EVERY = 10  # steps between rows of expert_load.csv


def train(
    recipe: Recipe,
    run_dir: str | Path,
    init_from: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    device: str = "auto",
) -> dict:
    """Run one stage in this process, or go on with it, or say that it is done; in several:
    `minglm.distributed.run.train`.

    Args:
        run_dir: folder of the run, made when missing. init_from: run or checkpoint folder whose weights and tokenizer
            the stage starts from; needed by every stage but pretrain, and ignored when the run itself can be resumed.
        resume: False sets the old run aside and starts over. progress: show a bar on stderr.
        device: cpu, cuda, npu, mps or auto.

    Returns: the last row of metrics.csv as a dict, with `val_loss` the last one measured.

    Raises:
        InputError: anything in recipe, folder, memory or checkpoint that does not fit; a loss that is not finite.
        Interrupted: Ctrl-C, after the state has been saved.
    """
    run_dir = Path(run_dir)
    device = devices.resolve(device)
    with claimed(run_dir, recipe, resume), deterministic(compiled=recipe.compile):
        return TrainingRun(recipe, run_dir, init_from, device).loop(progress)


@contextlib.contextmanager
def claimed(run_dir: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Make the run folder this recipe's and its only writer this process, or refuse: another recipe's run is never
    overwritten by accident."""
    note = run_dir / "recipe.yaml"
    if not resume:
        run_folder.set_aside(run_dir, "train")
    with run_folder.writing(run_dir, "train", "minglm train", note.name):
        if note.is_file() and checkpoint.find(run_dir):  # else nothing has been learnt under the other recipe
            theirs, ours = recipes.load(note).to_dict(), recipe.to_dict()
            changed = next((k for k in ours if ours[k] != theirs[k]), None)
            if changed:
                raise InputError(
                    f"{run_dir}: made with {changed}={theirs[changed]!r}, now {changed}={ours[changed]!r}; use "
                    "--overwrite to start over or another --run, with --init-from for its weights"
                )
        atomic.write_text(note, recipes.render(recipe), durable=True)
        yield


class TrainingRun:
    """One run in memory: model, optimiser, data, logs, and the number of finished steps.

    This class trains in one process. What another way of running does otherwise stands in the hooks below, and in
    nothing else: `minglm.distributed.run.ShardedRun` overrides them for several processes.

        first                        whether this process writes notes, logs and the progress bar
        load_latest, restore, save   where the state of a run comes from and goes to
        open_data                    tokenizer, loaders, and notes on the text
        tell                         a line for the terminal, before the first step
        to_device, make_optimizer    the model as it is trained, and what updates it
        before_forward               called before each batch of an update
        parts                        rows of a batch that are trained at the same time
        all_ranks_agree              whether any process wants to stop
        open_log, write_notes        files of the run folder
        peak_flops_per_s             denominator of MFU
    """

    def __init__(self, recipe: Recipe, run_dir: Path, init_from: str | Path | None, device: str | torch.device) -> None:
        self.recipe, self.dir, self.config = recipe, run_dir, recipe.config()
        self.device = torch.device(device)
        self._newest = checkpoint.find(run_dir)[:1]
        resumed = self.load_latest(run_dir)
        start = resumed or self._initial(init_from)
        memory.check(recipe, self.device.type, self.config)
        self.step = resumed.step if resumed else 0
        self.resumes = resumed is not None
        self.tokenizer, self.loader, self.validation, self.data_notes = self.open_data(
            init_from if not resumed else run_dir
        )
        torch.manual_seed(recipe.seed)
        self.model = self.to_device(self._new_model())
        self.named = self._learning()
        self.optimizer = self.make_optimizer(lr=recipe.lr, adam_lr=recipe.adam_lr, weight_decay=recipe.weight_decay)
        if start:
            self.restore(start, optimizer=resumed is not None)
        if resumed:
            resumed.restore_rng()
        self.rounding = FakeQuant(self.model, Spec(recipe.qat, recipe.qat_group) if recipe.qat else None)
        self.forward = torch.compile(self.model) if recipe.compile else self.model
        self.write_notes(init_from, start)
        if recipe.warmup_steps > recipe.steps:
            warm, steps = recipe.warmup_steps, recipe.steps
            self.tell(f"warmup_steps={warm}: above steps={steps}, so that lr is never reached; lower warmup_steps")

    # ------------------------------------------------------------------ hooks

    first = True

    def tell(self, line: str) -> None:
        """A line on stderr; an empty one is none."""
        if line and self.first:
            print(line, file=sys.stderr)

    def load_latest(self, path: str | Path) -> checkpoint.Checkpoint | None:
        """The newest whole checkpoint of a run or checkpoint folder; None where there is none."""
        return checkpoint.latest(path)

    def restore(self, start: checkpoint.Checkpoint, optimizer: bool) -> None:
        """Weights of a checkpoint into the model, and with `optimizer` its state into the optimiser."""
        self.model.load_state_dict(start.model)
        if optimizer:
            self.optimizer.load_state_dict(start.optimizer)

    def save(self) -> Path:
        """Write a checkpoint of the finished steps; returns its folder."""
        return checkpoint.save(
            self.dir, self.step, self.config, self.model.state_dict(), self.optimizer.state_dict(), self._notes()
        )

    def to_device(self, model: Model) -> Model:
        """The whole model, on the CPU with its starting weights, as it is trained here."""
        return model.to(self.device)

    def make_optimizer(self, lr: float, adam_lr: float | None, weight_decay: float) -> MuonAdamW:
        """Optimiser of the parameters that this stage trains (`named`)."""
        return MuonAdamW(self.named, self.config, lr=lr, adam_lr=adam_lr, weight_decay=weight_decay)

    def before_forward(self, last: bool) -> None:
        """Called before each batch of an update; `last`: its backward pass ends the update."""

    def parts(self, batch: shards.Batch) -> list[shards.Batch]:
        """The rows of a batch, parted into those that are trained at the same time."""
        if self.device.type != "cpu" or self.recipe.compile:
            return [batch]
        return halves(batch, batch.tokens.numel() * self.flops_per_token())

    def all_ranks_agree(self, stop: bool) -> bool:
        """Whether to stop, when this process wants to (`stop`)."""
        return stop

    def open_log(self, name: str, columns: tuple[str, ...]) -> metrics.Log:
        """A CSV file of the run folder, open for the steps to come."""
        return metrics.CsvLog(self.dir / name, columns, self.step)

    def peak_flops_per_s(self) -> float:
        """What the processes of this run can do together, measured: the denominator of MFU."""
        return machine.matmul_flops_per_s("fp32", self.device.type)

    # ------------------------------------------------------------------ setting up

    def _initial(self, init_from: str | Path | None) -> checkpoint.Checkpoint | None:
        if init_from is None:
            if self.recipe.stage == "pretrain":
                return None
            raise InputError(
                f"stage {self.recipe.stage}: starts from a trained model; give --init-from RUN, such as runs/pretrain"
            )
        start = self.load_latest(init_from)
        if start is None:
            raise InputError(f"--init-from {init_from}: no checkpoint there; train that stage first")
        ours, theirs = self.config.to_dict(), start.config.to_dict()
        other = [k for k in ours if ours[k] != theirs[k] and k not in recipes.RESUMABLE_OVERRIDES]
        if other:
            raise InputError(
                f"--init-from {init_from}: has {other[0]}={theirs[other[0]]}, the recipe's model {self.recipe.model} "
                f"has "
                f"{ours[other[0]]}; use the recipe of the same model size"
            )
        return start

    def open_data(self, tokenizer_from: str | Path | None) -> data.Data:
        """Tokenizer, loaders, and what versions.json says of the text; a hook."""
        begun_on = data.note(self.dir) if self.resumes else None
        return data.open_data(self.recipe, self.config, self.dir, tokenizer_from, begun_on, self.tell)

    def _new_model(self) -> Model:
        """The model with its first weights."""
        model = Model(self.config)
        if self.recipe.embedding_std is not None:
            with torch.no_grad():  # the same draw, wider
                model.embed_tokens.weight.mul_(self.recipe.embedding_std / self.config.initializer_range)
        return model

    def _learning(self) -> list[tuple[str, torch.Tensor]]:
        """Mark what this stage trains and return it by name."""
        indexer = {id(p) for p in self.model.indexer_parameters()}
        for p in self.model.parameters():
            is_indexer = id(p) in indexer
            p.requires_grad_({"dense": not is_indexer, "warmup": is_indexer, "sparse": True}[self.recipe.mode])
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def write_notes(self, init_from: str | Path | None, start: checkpoint.Checkpoint | None) -> None:
        """Tokenizer, config and versions into the run folder; a hook."""
        self.tokenizer.save(self.dir / "tokenizer.json")
        atomic.write_json(self.dir / "config.json", self.config.to_hf())
        notes = {
            "machine": machine.describe(measure=False),
            **self.data_notes,
            "tokenizer_sha256": self.tokenizer.sha256,
            "init_from": None if init_from is None else str(init_from),
            "init_step": start.step if start else None,
            "parameters": self.config.num_params(mtp=True),
            "active_parameters": self.config.num_active_params(),
        }
        atomic.write_json(self.dir / "versions.json", notes)

    # ------------------------------------------------------------------ the loop

    def loop(self, progress: bool) -> dict:
        """Run the steps that are left; returns `last_metrics`.

        Raises:
            InputError: another writer is in the folder, or has gone on since this run was read from it.
        """
        with run_lock.hold(self.dir, "minglm train") if self.first else contextlib.nullcontext():
            return self._loop(progress)

    def _loop(self, progress: bool) -> dict:
        r = self.recipe
        if self.step >= r.steps:
            return self.last_metrics()
        if checkpoint.find(self.dir)[:1] != self._newest:
            raise InputError(
                f"{self.dir}: another writer has gone on since step {self.step} was read here; make the run again, and "
                "it goes on from there"
            )
        log = self.open_log("metrics.csv", metrics.COLUMNS)
        load_log = self.open_log(
            "expert_load.csv", ("step", "layer", *(f"expert_{e}" for e in range(self.config.n_routed_experts)))
        )
        self.peak = self.peak_flops_per_s()
        bar = tqdm(
            total=r.steps,
            initial=self.step,
            desc=f"{self.dir.name} ({r.stage})",
            unit="step",
            disable=not (progress and self.first),
            dynamic_ncols=True,
        )
        try:
            with finish_step_on_sigint() as stop:
                while self.step < r.steps:
                    row, counts = self.one_step()
                    log.write(row)
                    if counts is not None and (self.step % LOAD_EVERY == 0 or self.step in (1, r.steps)):
                        for layer, load in enumerate(counts):
                            load_log.write(
                                {"step": self.step, "layer": layer, **{f"expert_{e}": n for e, n in enumerate(load)}}
                            )
                    bar.update(1)
                    bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{row['tokens_per_s']:.0f}", refresh=False)
                    stopping = self.all_ranks_agree(stop.is_set())
                    if self.step % r.checkpoint_every == 0 or self.step == r.steps or stopping:
                        log.flush_to_disk()
                        load_log.flush_to_disk()
                        self._newest = [self.save()]
                    if stopping and self.step < r.steps:
                        raise Interrupted(
                            f"{self.dir}: stopped after step {self.step} of {r.steps}, state saved; the same command "
                            f"goes on"
                        )
        finally:
            bar.close()
            log.close()
            load_log.close()
        return self.last_metrics()

    def one_step(self) -> tuple[dict, list[list[int]] | None]:
        """One update. Returns its row of metrics.csv and the expert loads (layers, E)."""
        r, started = self.recipe, time.perf_counter()
        self.model.train()
        self.optimizer.zero_grad()
        self.rounding.on()
        parts: dict[str, float] = {}
        loads_of_step = None
        batches = [self.loader.batch(self.step * r.grad_accum + i) for i in range(r.grad_accum)]
        # Losses are divided by counts of the whole step: a mean of the passes' means would depend on the cut.
        counts = StepCounts.of(((b.targets, b.doc_start) for b in batches), self.config.mtp_depth).to(self.device)
        learns = [p for _, p in self.named]
        for i, batch in enumerate(batches):
            self.before_forward(last=i == r.grad_accum - 1)
            for loss, out in backward(partial(self.loss, counts=counts), self.parts(batch), learns):
                for name, value in (
                    ("loss", loss),
                    ("lm_loss", out.lm_loss),
                    ("mtp_loss", out.mtp_loss),
                    ("balance_loss", out.balance_loss),
                    ("indexer_kl", out.indexer_kl),
                ):
                    if value is not None:
                        parts[name] = parts.get(name, 0.0) + float(value.detach())
                if out.expert_counts is not None:
                    loads_of_step = out.expert_counts if loads_of_step is None else loads_of_step + out.expert_counts
        self.rounding.off()  # the update is the master weights'
        norm = float(self.optimizer.clip_grad_norm(r.clip))
        self._check_finite({**parts, "grad_norm": norm})
        scale = cosine_with_warmup(self.step, r.steps, r.warmup_steps, r.final_lr_fraction)
        self.optimizer.step(scale)
        if loads_of_step is not None and r.mode != "warmup" and r.bias_rate:
            self.model.update_router_bias(loads_of_step, r.bias_rate)
        self.step += 1
        took = time.perf_counter() - started
        loads = None if loads_of_step is None else loads_of_step.tolist()
        entropy, peak = metrics.load_statistics(loads) if loads else (None, None)
        row = {
            "step": self.step,
            "tokens": self.step * r.tokens_per_step,
            **parts,
            "load_entropy": entropy,
            "load_max_over_mean": peak,
            "dropped_tokens": self._dropped(loads, len(batch.tokens) * r.grad_accum),
            "grad_norm": norm,
            "lr": r.lr * scale,
            "tokens_per_s": r.tokens_per_step / took,
            "mfu": r.tokens_per_step / took * self.flops_per_token() / self.peak,
        }
        if self.validation is not None and (self.step % r.val_every == 0 or self.step == r.steps):
            with self.rounding:
                row["val_loss"] = self.validate()
        return row, loads

    def loss(self, batch: shards.Batch, counts: StepCounts):
        """This forward pass's summand of the step's loss, weighted, and the model's output with its parts."""
        r = self.recipe
        tokens, targets, doc_start = (t.to(self.device) for t in batch)
        mtp = r.mtp_weight > 0 and r.mode != "warmup" and self.step >= r.first_lesson
        out = self.forward(tokens, targets, mode=r.mode, doc_start=doc_start, mtp=mtp, counts=counts)
        if r.mode == "warmup":
            return r.indexer_weight * out.indexer_kl, out
        loss = out.lm_loss
        for weight, part in (
            (r.mtp_weight, out.mtp_loss),
            (r.balance_weight, out.balance_loss),
            (r.indexer_weight, out.indexer_kl),
        ):
            if part is not None and weight:
                loss = loss + weight * part
        return loss, out

    @torch.no_grad()
    def validate(self) -> float:
        """LM loss on unseen text, in nats per token, as a user would run the model: sparse once there is an indexer."""
        assert self.validation is not None
        self.model.eval()
        mode = "dense" if self.recipe.mode == "dense" else "sparse"
        total = count = 0.0
        for i in range(self.recipe.val_batches):
            tokens, targets, doc_start = (t.to(self.device) for t in self.validation.batch(i))
            loss = self.model(tokens, targets, mode=mode, doc_start=doc_start, mtp=False).lm_loss
            n = int((targets != shards.IGNORE).sum())
            total, count = total + float(loss) * n, count + n
        return total / max(count, 1)

    def _check_finite(self, values: dict[str, float]) -> None:
        bad = next((name for name, v in values.items() if not math.isfinite(v) and name != "loss"), None)
        bad = bad or ("loss" if not math.isfinite(values["loss"]) else None)
        if bad:
            checkpoints = checkpoint.find(self.dir)
            last = (
                f"the last good checkpoint is {checkpoints[0]}" if checkpoints else "no checkpoint had been written yet"
            )
            raise InputError(
                f"{self.dir / 'metrics.csv'} step {self.step + 1}: {bad} is {values[bad]}, training stopped; {last}; "
                f"go on from it with --run NEW --init-from {self.dir} --set lr={self.recipe.lr / 2:g}"
            )

    def _dropped(self, loads: list[list[int]] | None, sequences: int) -> int | None:
        """Tokens × K that entered the MoE layers less what the experts report to have processed:
        0 if none was dropped."""
        if loads is None:
            return None
        K, T, moe = self.config.num_experts_per_tok, self.recipe.seq_len, self.config.num_moe_layers
        entered = sequences * T * K * moe
        if len(loads) > moe:  # the MTP layer sees one token fewer at each depth
            entered += sum(sequences * (T - d) * K for d in range(1, min(self.config.mtp_depth, T - 1) + 1))
        return entered - sum(map(sum, loads))

    def flops_per_token(self) -> float:
        """Model FLOPs for one token of this stage, the numerator of MFU."""
        c, r = self.config, self.recipe
        if r.mode == "warmup":  # forward of all, backward of the indexer's scores
            return c.train_flops_per_token(r.seq_len, sparse=False) / 3 + 3 * c.flops_breakdown(r.seq_len)["indexer"]
        return c.train_flops_per_token(
            r.seq_len, sparse=r.mode == "sparse", mtp=r.mtp_weight > 0 and self.step > r.first_lesson
        )

    def _notes(self) -> dict:
        return {"recipe": self.recipe.to_dict(), "seed": self.recipe.seed, "versions": machine.versions()}

    def last_metrics(self) -> dict:
        """The last row of metrics.csv, with the last validation loss, what it was measured on, and the run's folder."""
        rows = metrics.read(self.dir / "metrics.csv")
        if not rows:
            raise InputError(
                f"{self.dir / 'metrics.csv'}: no row of it can be read; the weights are whole and can be used, "
                "--overwrite trains again"
            )
        last_val = next((row["val_loss"] for row in reversed(rows) if row["val_loss"] is not None), None)
        return {**rows[-1], "val_loss": last_val, "validation": self.data_notes["validation"], "run_dir": str(self.dir)}
