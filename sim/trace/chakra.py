"""MLCommons Chakra execution traces of a step: written for ASTRA-sim and its like, read back and replayed here.

One file per distinct pipeline rank, `PREFIX.N.et`: a length-delimited `GlobalMetadata`, then `Node`s. Beside them
`PREFIX.json`, the communicator groups (name -> file numbers), and `PREFIX.fold.json`, which rank of which replica each
file stands for. A pipeline rank is `chips_per_rank` chips in lock step; what they do among themselves is inside their
compute nodes. Durations are whole microseconds, as the schema has them.

The encoding is in `sim/trace/chakra_node.py`, the nodes of a rank in `sim/trace/chakra_rank.py`. What `comm_size` says
is what one rank gives, as ASTRA-sim and Chakra's converter of PyTorch have it: of an all-gather, one rank's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minglm import atomic
from minglm.errors import InputError
from sim.cost.step_costs import StepCosts
from sim.trace import chakra_json, protobuf
from sim.trace.chakra_node import Node
from sim.trace.chakra_rank import AllToAll, RankNodes, Transfers
from sim.training.jitter import Jitter
from sim.training.replica import Replica
from sim.training.step import StepResult, simulate

SCHEMA = "mlcommons/chakra 6dc63e147b9d115286626cc122459e44d9d08401"
VERSION = "0.0.4"
MAX_FILES = 4096
_TYPE = 3  # field of a node, and of no metadata


class _Recorder:
    """Keeps what a step simulated."""

    def record(self, result: StepResult, replicas: Sequence[Replica], costs: StepCosts) -> None:
        self.replicas = replicas


def write(  # noqa: PLR0913 - what is simulated, and how it is written
    costs: StepCosts,
    schedule: str,
    folder: str | Path,
    prefix: str = "step",
    *,
    replicas: int = 1,
    fold: bool = True,
    jitter: Jitter | None = None,
    seed: int = 0,
    all_to_all: AllToAll | None = None,
    grad_bytes: float = 0.0,
) -> StepResult:
    """Simulate a step and write it as Chakra traces; returns the step's result.

    Identical replicas are written once (`fold`), which `PREFIX.fold.json` says. `grad_bytes` is what one rank reduces.

    Raises:
        InputError: there would be over 4,096 files (noise makes every replica distinct).
    """
    folder, recorder = Path(folder), _Recorder()
    result = simulate(costs, schedule, replicas=replicas, fold=fold, jitter=jitter, seed=seed, recorder=recorder)
    simulated, ranks = recorder.replicas, len(result.programs)
    files = len(simulated) * ranks
    if files > MAX_FILES:
        raise InputError(
            f"{len(simulated)} distinct replicas of {ranks} ranks: {files} trace files are more than {MAX_FILES}; "
            "leave "
            "out the noise or simulate fewer replicas"
        )
    folder.mkdir(parents=True, exist_ok=True)
    transfers = Transfers(result.programs)
    schema = protobuf.field(1, "schema") + protobuf.field(29, SCHEMA)
    metadata = protobuf.field(1, VERSION) + protobuf.field(2, schema)
    fold_map = []
    for number in range(files):
        copy, rank = divmod(number, ranks)
        replica, even = simulated[copy], all_to_all or AllToAll()
        nodes = RankNodes(result, replica, rank, copy * ranks, costs, transfers, even, grad_bytes).build()
        encoded = protobuf.delimited([metadata, *(node.encode() for node in nodes)])
        atomic.write_bytes(folder / f"{prefix}.{number}.et", encoded)
        fold_map.append({"file": number, "replica": replica.index, "rank": rank})
    groups = {"0": list(range(files))}
    for rank in range(ranks):  # data-parallel and expert-parallel group of each pipeline rank
        groups[str(1 + rank)] = groups[str(1 + ranks + rank)] = list(range(rank, files, ranks))
    atomic.write_json(folder / f"{prefix}.json", groups, indent=None)
    folded = {
        "schema": SCHEMA,
        "schedule": schedule,
        "replicas": replicas,
        "written_replicas": len(simulated),
        "ranks": ranks,
        "chips_per_rank": costs.chips_per_rank,
        "files": fold_map,
    }
    atomic.write_json(folder / f"{prefix}.fold.json", folded, indent=None)
    return result


def read(path: str | Path) -> tuple[str, list[Node]]:
    """(version, nodes) of one `.et` file, or of the `.json` that chakra_jsonizer makes of one.

    Raises:
        InputError: a file that is missing, cut off or something else.
    """
    path = Path(path)
    if path.suffix == ".json":
        return chakra_json.read(path)
    try:
        messages = list(protobuf.split(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the prefix of PREFIX.N.et files") from None
    except InputError as err:
        raise InputError(f"{path}: {err}") from None
    if not messages:
        raise InputError(f"{path}: empty; an execution trace begins with its metadata: write it again")
    try:
        metadata = dict(protobuf.fields(messages[0]))
        version = metadata.get(1, b"")
        if isinstance(version, int) or _TYPE in metadata:  # a writer that leaves the metadata out: it is a node
            return "", [Node.decode(m) for m in messages]
        return version.decode(), [Node.decode(m) for m in messages[1:]]
    except (InputError, UnicodeDecodeError, AttributeError, TypeError) as err:
        raise InputError(
            f"{path}: not a Chakra execution trace ({err}); write it with sim.trace.chakra.write"
        ) from None
