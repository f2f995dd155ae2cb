"""What a first token waits for beside its prompt's own pass: the host before it, steps around it, prompts before it.

One law for answers, sizing, simulation and validation; its constants are of the software (`data/serving/stacks.yaml`):
`front_s` and `front_token_s` (HTTP, tokenisation, queues between processes), `first_token_steps` (half a step until
the running one ends, the one that the prompt shares with the running batch, the token's way back) and `poll_steps`
(steps between two looks at new requests). Without graphs a prompt's pass lasts at least as long as the host needs to
issue it (`prefill_op_s`); what prepares it beside the running steps holds up the first token, not the others.
"""

from __future__ import annotations

from sim.serving.deployment import Deployment
from sim.serving.operators import operators_issued
from sim.serving.stacks import ServingStack
from sim.serving.step_time import decode_step, prefill

SHARED_STEPS = (
    1.5  # of `first_token_steps`: half of the running step and the shared one, which a simulation steps through
)


def front_s(stack: ServingStack, prompt: float) -> float:
    """Seconds from a client to the engine's queue for a prompt of so many tokens, cached or not."""
    return stack["front_s"] + stack["front_token_s"] * prompt


def steps_before(stack: ServingStack) -> float:
    """Decode steps of a busy engine that a first token waits for."""
    return stack["first_token_steps"] + (stack["poll_steps"] - 1.0) / 2.0


def steps_back(stack: ServingStack) -> float:
    """Of these, the ones after the engine has made the token."""
    return max(0.0, stack["first_token_steps"] - SHARED_STEPS)


def prepared_s(d: Deployment, pass_s: float) -> float:
    """Seconds that a prompt's pass starts later because the host prepares it, a pass of `pass_s` seconds."""
    return max(0.0, d.stack.get("prefill_op_s", 0.0) * operators_issued(d, ahead=True) - pass_s)


def unqueued_s(d: Deployment, prompt: float, step_s: float, cached: float = 0.0, mode: str = "hybrid") -> float:
    """Seconds to the first token of a prompt that waits for no other, on an engine whose steps take `step_s`."""
    alone_s = prefill(d, prompt, cached, 1, mode).total_s
    if mode != "hybrid":  # a bound: nothing but the chips' own time
        return alone_s
    return front_s(d.stack, prompt) + steps_before(d.stack) * step_s + prepared_s(d, alone_s) + alone_s


def together_s(d: Deployment, prompt: float, requests: int, pass_tokens: float, mode: str = "hybrid") -> float:
    """Mean seconds until the pass with a prompt ends, where `requests` of them arrive at once.

    Passes hold `pass_tokens` at most; those whose prompt is done decode along.
    """
    most = max(1, int(pass_tokens // prompt))
    now = total = 0.0
    done = 0
    whole_s = prefill(d, prompt, 0, most, mode).total_s if requests >= most else 0.0
    while done < requests:
        taken = min(most, requests - done)
        now += whole_s if taken == most else prefill(d, prompt, 0, taken, mode).total_s
        now += decode_step(d, done, prompt, mode).total_s if done else 0.0
        total += taken * now
        done += taken
    return total / requests
