"""Every constant of the analytical cost model with its label, for the error table:
measured, published, fitted or assumed.
"""

from __future__ import annotations

import dataclasses

from sim.cost import collectives, kernels, measured, memory, operators, operators_attention, operators_moe, stacks


def table(names: list[str]) -> list[dict]:
    """Rows of name, value, label, source: kernels, collectives, attention kernels, and the stacks called `names`."""
    out = []
    for where, constants in (("kernel", kernels.CONSTANTS), ("collective", collectives.CONSTANTS)):
        out += [
            {"name": f"{where}.{key}", "value": value, "label": label, "source": source}
            for key, (value, label, source) in constants.items()
        ]
    for name, value, source in (
        (
            "attention.sink_slowdown",
            operators_attention.SINK_SLOWDOWN,
            "no measured kernel for attention with learned sinks is at hand",
        ),
        (
            "kernel.held_quantile",
            measured.HELD_QUANTILE,
            "share of the largest short matmuls that are slower than what a long run holds; range 0.5 to 0.9",
        ),
        (
            "experts.bias_bytes",
            "/".join(f"{x:.0f}" for x in operators_moe.BIAS_BYTES),
            "bytes a value of the experts' output that adding a bias moves, forward/backward: passes counted by hand",
        ),
        (
            "experts.cast_launch",
            operators.CAST_LAUNCH,
            "host time to quantise one expert's rows over an operator's issued from Python; range 0.2 to 1",
        ),
        (
            "memory.runtime_bytes",
            memory.RUNTIME_BYTES,
            "runtime, communicators and workspaces; NCCL and a CUDA context take 1-2 GiB",
        ),
    ):
        out.append({"name": name, "value": value, "label": "assumed", "source": source})
    for (kernel, family), (forward, backward, half, label) in stacks.ATTENTION.items():
        out.append(
            {
                "name": f"attention.{kernel}{'.' + family if family else ''}",
                "value": f"{forward}/{backward}/{half:.0f}",
                "label": label,
                "source": "share of the best matmul forward/backward, keys at half of it "
                "(arXiv 2307.08691, 2407.08608)",
            }
        )
    for family, fit in (stacks.read_fitted().get("chips") or {}).items():
        out.append(
            {
                "name": f"chip.sustained[{family}]",
                "value": fit["value"],
                "label": "fitted",
                "source": "on " + ", ".join(map(str, fit["rows"])),
            }
        )
    default = {f.name: f.default for f in dataclasses.fields(stacks.Stack)}
    for name in names:
        try:
            stack = stacks.load_stack(name)
        except ValueError:
            continue
        for chip, fit in stack.fitted.items():
            out.append(
                {
                    "name": f"{name}.{fit['name']}[{chip}]",
                    "value": fit["value"],
                    "label": "fitted",
                    "source": "on " + ", ".join(fit.get("rows") or ["?"]),
                }
            )
        for field in dataclasses.fields(stack):
            value = getattr(stack, field.name)
            if field.name in ("name", "title", "family", "labels", "fitted") or value == default[field.name]:
                continue
            label, _, source = str(stack.labels.get(field.name, "assumed: default of the release")).partition(": ")
            out.append({"name": f"{name}.{field.name}", "value": value, "label": label, "source": source})
    for key in (
        "tp_hidden",
        "wgrad_hidden",
        "dp_hidden",
        "fsdp_hidden",
        "all_to_all_hidden",
        "host_op_s",
        "host_backward",
        "host_message_s",
        "fixed_s",
        "jitter",
        "router_passes",
        "fp8_passes",
    ):
        out.append(
            {
                "name": f"stack.{key}",
                "value": default[key],
                "label": "assumed",
                "source": "default of every stack; see sim/cost/stacks.py",
            }
        )
    return out
