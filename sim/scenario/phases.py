"""The phases of a scenario: read from its document, and checked against its model and its tokens."""

from __future__ import annotations

from minglm.errors import InputError, nearest
from sim.base.units import show
from sim.scenario.fields import PHASE
from sim.spec.model import ModelSpec
from sim.spec.phases import GLM5, Phase

TOKENS_TOLERANCE = 0.1  # a report's round total beside the phases' own sum


def read_phases(raw: object) -> tuple[Phase, ...]:
    """The phases that a document names or lists; none where it has none.

    Raises:
        InputError: not a list of phases, or a phase without tokens, seq or batch.
    """
    if raw is None:
        return ()
    if isinstance(raw, str):
        if raw.lower() != "glm5":
            raise InputError(f"phases {raw!r}: must be glm5 or a list of phases{nearest(raw, ('glm5',))}")
        return GLM5
    if not isinstance(raw, list) or not raw:
        raise InputError("phases must be glm5 or a list of phases with name, tokens, seq, batch")
    return tuple(_phase(values, f"phases[{i}]", i) for i, values in enumerate(raw))


def _phase(raw: object, where: str, number: int) -> Phase:
    values = PHASE.read(raw, where)
    for key in ("tokens", "seq", "batch"):
        if key not in values:
            raise InputError(f"{where}: has no {key!r}; give name, tokens, seq, batch")
    return Phase(
        values.get("name", f"phase {number + 1}"),
        values["tokens"],
        values["seq"],
        values["batch"],
        values.get("first_batch"),
        values.get("ramp", 0.0),
        values.get("note", ""),
        values.get("attention", "dense"),
    )


def check_indexer(phases: tuple[Phase, ...], model: ModelSpec) -> None:
    """Refuse to search plans for phases of sparse attention where the model has no indexer.

    Raises:
        InputError: one line.
    """
    for phase in phases:
        if phase.attention == "sparse" and not model.index_topk:
            raise InputError(
                f"phase {phase.name!r} trains sparse attention and the model {model.name} has no indexer; leave phases "
                "out, or list phases of dense attention"
            )


def check_tokens(phases: tuple[Phase, ...], tokens: float | None) -> None:
    """Refuse tokens that are not those of the phases, which are what is trained.

    Raises:
        InputError: one line.
    """
    total = sum(phase.tokens for phase in phases)
    if phases and tokens is not None and abs(tokens / total - 1) > TOKENS_TOLERANCE:
        raise InputError(
            f"tokens {show(tokens, 'count')}: the phases train {show(total, 'count')}; leave tokens out, or give "
            "phases that train as many"
        )
