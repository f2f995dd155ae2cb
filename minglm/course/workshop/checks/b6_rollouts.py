"""Checks of build 6: a round, APRIL's queue, the rule of submission, log-probabilities, the whole loss, the update."""

import heapq
import itertools
from functools import partial

import torch

from minglm.config import ModelConfig
from minglm.course.workshop.build import solved
from minglm.course.workshop.checking import Exercise, Mistake
from minglm.course.workshop.checks import drawn
from minglm.rl.modes import PartialBuffer, Policy, Status
from minglm.rl.objectives import Clip, group_advantages, grpo
from minglm.training.optim import MuonAdamW

# ---------------------------------------------------------------------- a round


def _play(left, places, target, at_once=False, exactly=False, total=False):
    """By events: the end of each request is known when it starts."""
    line = list(range(len(left)))
    running: list[tuple[int, int]] = []  # (end, request)
    done: dict[int, int] = {}
    starts: dict[int, int] = {}
    clock = 0
    while len(done) < target:
        while line and (len(running) < places or at_once):
            i = line.pop(0)
            starts[i] = clock
            heapq.heappush(running, (clock + left[i], i))
        clock = running[0][0]
        while running and running[0][0] == clock:
            end, i = heapq.heappop(running)
            if not exactly or len(done) < target:
                done[i] = end
    rest = {
        i: left[i] - (clock - starts[i] if i in starts and not total else 0) for i in range(len(left)) if i not in done
    }
    return [clock, sorted(done), rest]


def _play_wrongly(wrong, left, places, target):
    return tuple(_play(left, places, target, **{wrong: True}))


def _use_play(answer):
    def run(*args):
        out = answer(*args)
        if not (isinstance(out, tuple) and len(out) == 3):
            return out
        return [out[0], list(out[1]), out[2]]

    return run


def _play_cases():
    return [
        ([1, 1, 1, 20], 2, 4),
        ([1, 1, 1, 20], 2, 3),
        ([3, 5, 2, 2, 9, 1], 3, 4),
        ([2, 2, 2, 7], 4, 2),
        ([4, 1], 1, 1),
    ]


# ---------------------------------------------------------------------- queue and rule


def _script(steps, kind):
    """What `take` gave in a script of ("take", n) and ("back", entries)."""
    queue, out = kind(itertools.count(100)), []
    for what, value in steps:
        if what == "take":
            out.append(list(queue.take(value)))
        else:
            queue.put_back(list(value))
    return out


class _Buffered:
    """By the shared code's own buffer."""

    def __init__(self, fresh, wrong=""):
        self.fresh, self.wrong = fresh, wrong
        self.buffer: PartialBuffer = PartialBuffer()

    def put_back(self, entries):
        if self.wrong == "reversed":
            entries = entries[::-1]
        if self.wrong == "forgets":
            self.buffer.waiting.clear()
        self.buffer.put_back(entries)

    def take(self, n):
        held = [] if self.wrong == "new first" and n < 3 else self.buffer.take(n)
        if self.wrong == "at once" and held:
            held += self.buffer.take(len(self.buffer))
        new = [next(self.fresh) for _ in range(n - len(held))]
        return [*new, *held] if self.wrong == "new first" else [*held, *new]


def _use_queue(answer):
    def run(steps):
        made = answer(itertools.count(0))
        return _script(steps, answer) if hasattr(made, "take") else made

    return run


def _as_queue(wrong):
    return lambda fresh: _Buffered(fresh, wrong)


def _queue_cases():
    return [
        ([("take", 2), ("back", [7, 8, 9]), ("take", 2), ("back", [5]), ("take", 4)],),
        ([("back", [1, 2]), ("back", [3]), ("take", 5), ("take", 1)],),
        ([("take", 0), ("back", []), ("take", 3)],),
    ]


def _submit(mode, batch, over, running, finished):
    policy = Policy(mode=mode, prompts_per_batch=batch, over_sampling=over if mode == "april" else None)
    return policy.groups_to_submit(Status(running=running, finished=finished))


def _submit_cases():
    counts = ((0, 0), (3, 4), (8, 0), (0, 8), (5, 5), (0, 7), (12, 0))
    return [(mode, 8, 16, running, finished) for mode in ("sync", "april") for running, finished in counts]


# ---------------------------------------------------------------------- the update


class Tiny(torch.nn.Module):
    """tokens (N, T) → logits (N, T, 7)."""

    def __init__(self):
        super().__init__()
        self.config = ModelConfig.named("nano")
        self.embed_tokens = torch.nn.Embedding(7, 5)
        self.mix = torch.nn.Linear(5, 5)
        self.lm_head = torch.nn.Linear(5, 7, bias=False)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(drawn(*p.shape, seed=40 + i))

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.mix(self.embed_tokens(tokens).cumsum(1))))


def _sequences():
    tokens = torch.randint(0, 7, (6, 6), generator=torch.Generator().manual_seed(3))
    return tokens, torch.arange(5)[None] < torch.tensor([5, 2, 3, 1, 4, 5])[:, None]


def _log_probs(tokens, wrong=""):
    logits = Tiny()(tokens).detach()
    if wrong == "not moved":
        return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[:, 1:, 0]
    rows = logits.softmax(-1) if wrong == "probability" else logits if wrong == "logit" else logits.log_softmax(-1)
    return torch.stack(
        [torch.stack([rows[n, t, tokens[n, t + 1]] for t in range(tokens.shape[1] - 1)]) for n in range(len(tokens))]
    )


def _use_log_probs(answer):
    def run(tokens):
        out = answer(Tiny(), tokens)
        return out.detach() if torch.is_tensor(out) else out

    return run


def _loss(logp, old, ref, rewards, mask, how, beta, length, wrong=""):  # noqa: PLR0913  (as the sheet's)
    """minglm's own objective where it has the form; Dr. GRPO's constant by hand."""
    A = (
        (rewards - rewards.mean(1, keepdim=True))
        if how == "dr_grpo" and wrong != "divides"
        else group_advantages(rewards)
    )
    high = 0.28 if how == "dapo" and wrong != "clip" else 0.2
    form = "sequence" if how == "grpo" and wrong != "one average" else "token"
    loss = grpo(logp, old, old, A.flatten(), mask, clip=Clip(low=0.2, high=high, average=form))[0]
    if how == "dr_grpo" and wrong != "one average":
        loss = loss * mask.sum() / (len(mask) * length)
    if how == "grpo" and wrong != "no kl":
        k3 = torch.expm1(ref - logp) - (ref - logp)
        loss = loss + beta * ((k3 * mask).sum(1) / mask.sum(1)).mean()
    return loss


def _loss_cases():
    _, mask = _sequences()
    rewards = torch.tensor([[1.0, 0, 0], [0.2, 0.9, 0.1]])
    logp, old, ref = (-drawn(6, 5, seed=s).abs() for s in range(3))
    return [(logp, old, ref, rewards, mask, how, 0.5, 8) for how in ("grpo", "dapo", "dr_grpo")]


def _update(how, passes, wrong=""):
    """Losses of the passes and the moved parameters, by minglm's optimiser."""
    model = Tiny()
    tokens, mask = _sequences()
    rewards = torch.tensor([[1.0, 0, 0], [0.2, 0.9, 0.1]])
    optimizer, ref = MuonAdamW(model.named_parameters(), model.config, lr=0.1), _log_probs(tokens) - 0.1

    def now():
        logits = model(tokens)[:, :-1]
        return -torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
            mask.shape
        )

    old, losses = now().detach(), []
    for _ in range(1 if wrong == "one pass" else passes):
        logp = now()
        old = logp.detach() if wrong == "old moves" else old
        loss = _loss(logp, old, ref, rewards, mask, how, 0.01, mask.shape[1])
        kept = (
            {} if wrong != "adds up" else {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
        optimizer.zero_grad()
        loss.backward()
        for n, p in model.named_parameters():
            if n in kept and p.grad is not None:
                p.grad += kept[n]
        held = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        if wrong != "not clipped":
            optimizer.clip_grad_norm(1.0)
        optimizer.step()
        for n, p in model.named_parameters():
            p.grad = held.get(n)
        losses.append(loss.item())
    return [losses, *(p.detach().clone() for p in model.parameters())]


def _use_update(answer):
    def run(how, passes):
        if isinstance(answer, partial) and answer.func is _wrong_update:
            return answer(how, passes)

        model = Tiny()
        tokens, mask = _sequences()
        rewards = torch.tensor([[1.0, 0, 0], [0.2, 0.9, 0.1]])
        optimizer, ref = solved("build_4_training")["Optimizer"](model, 0.1), _log_probs(tokens) - 0.1
        losses = answer(model, optimizer, tokens, mask, rewards, ref, how, passes)
        if not isinstance(losses, (list, tuple)):
            return losses
        return [list(losses), *(p.detach().clone() for p in model.parameters())]

    return run


def _wrong_update(how, passes, wrong):
    return _update(how, passes, wrong)


EXERCISES = [
    Exercise(
        "build_6.play",
        _play,
        _play_cases,
        (
            Mistake(
                partial(_play_wrongly, "at_once"),
                "Only `places` requests run at once; the others wait in line.",
            ),
            Mistake(
                partial(_play_wrongly, "exactly"),
                "All requests that end in the last tick are complete, even if that is more than the target.",
            ),
            Mistake(
                partial(_play_wrongly, "total"),
                "A request that was stopped has written some of its tokens: give what is still to write.",
            ),
        ),
        "In each tick the first `places` of those left write a token; at 0 a request is complete; stop at the target.",
        use=_use_play,
    ),
    Exercise(
        "build_6.queue",
        lambda steps: _script(steps, _Buffered),
        _queue_cases,
        (
            Mistake(_as_queue("new first"), "Partials come first, new prompts only for what is still missing."),
            Mistake(_as_queue("reversed"), "Partials are resumed in the order in which they were stopped."),
            Mistake(_as_queue("forgets"), "What was put back earlier must not be lost when more is put back."),
            Mistake(_as_queue("at once"), "take(n) gives n entries; partials beyond that wait for the next call."),
        ),
        "A list of partials: put_back adds at its end, take cuts n from its front and fills up with next(fresh).",
        use=_use_queue,
    ),
    Exercise(
        "build_6.to_submit",
        _submit,
        _submit_cases,
        (
            Mistake(
                lambda mode, batch, over, running, finished: _submit("sync", batch, over, running, finished),
                "In mode april `over` groups are submitted: more than are needed.",
            ),
            Mistake(
                lambda mode, batch, over, running, finished: (over if mode == "april" else batch) * (finished < batch),
                "Groups that run will complete, too: count running and finished together.",
            ),
        ),
        "0 if running + finished >= batch, else over in april and batch in sync.",
    ),
    Exercise(
        "build_6.log_probs",
        _log_probs,
        lambda: [(_sequences()[0],)],
        (
            Mistake(
                lambda model, t: _log_probs(t, "not moved"), "Position i predicts token i + 1: drop the last logits."
            ),
            Mistake(lambda model, t: _log_probs(t, "probability"), "These are probabilities; take their logarithm."),
            Mistake(lambda model, t: _log_probs(t, "logit"), "These are logits; log_softmax makes log-probabilities."),
        ),
        "log_softmax of the logits [:, :-1], gathered at tokens[:, 1:].",
        use=_use_log_probs,
    ),
    Exercise(
        "build_6.policy_loss",
        _loss,
        _loss_cases,
        (
            Mistake(partial(_loss, wrong="divides"), "Dr. GRPO leaves out the division by the deviation."),
            Mistake(partial(_loss, wrong="clip"), "DAPO's upper bound is 0.28: unlikely tokens get more room to rise."),
            Mistake(partial(_loss, wrong="one average"), "Each way has its own average: hand `how` on to it."),
            Mistake(partial(_loss, wrong="no kl"), "GRPO adds beta times k3 to each token's loss."),
        ),
        "advantages, clipped with the bounds of the table, for grpo plus beta · k3, then average.",
    ),
    Exercise(
        "build_6.update",
        _update,
        lambda: [("grpo", 3), ("dapo", 2), ("dr_grpo", 2)],
        (
            Mistake(
                partial(_wrong_update, wrong="old moves"),
                "π_old moves with each pass: compute it once, before the first, without a gradient.",
            ),
            Mistake(partial(_wrong_update, wrong="one pass"), "The batch is used `passes` times."),
            Mistake(partial(_wrong_update, wrong="adds up"), "Gradients add up: set every p.grad to None first."),
            Mistake(partial(_wrong_update, wrong="not clipped"), "The gradients are not clipped to norm 1."),
        ),
        "old once under no_grad; each pass: log_probs, policy_loss, grads None, backward, clip, optimizer.step.",
        use=_use_update,
        absolute=2e-4,
    ),
]
