"""What `#SBATCH` lines, srun or mpirun ask for: nodes, and chips of a node, in any spelling that Slurm takes.

>>> asked("#SBATCH -N 4 --gres=gpu:h100:8\\n#SBATCH -J run")
{'nodes': '4', 'gpus-per-node': '8'}
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_PROGRAM = re.compile(r"\s(?=\S*(?:python|torchrun|bash|\.sh\b|\.py\b))")  # what srun starts has flags of its own
_SHORT = {"-N": "nodes", "-n": "ntasks", "-G": "gpus"}
_READ = ("nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gpus-per-task", "gres")
# What a job sees of it.
_VARIABLES = {
    "SLURM_NNODES": "nodes",
    "SLURM_JOB_NUM_NODES": "nodes",
    "SLURM_GPUS_ON_NODE": "gpus-per-node",
    "SLURM_GPUS_PER_NODE": "gpus-per-node",
    "SLURM_NTASKS_PER_NODE": "ntasks-per-node",
}


def asked(text: str) -> dict[str, str]:
    """`nodes`, `gpus-per-node` and `ntasks-per-node` as far as a script's lines say them; the last one wins.

    Of a range of nodes it is the least. Totals are shared out over the nodes where they divide.
    """
    given: dict[str, str] = {}
    joined = re.sub(r"\\\r?\n", " ", text)
    asked_by_srun = [_PROGRAM.split(line)[0] for line in re.findall(r"^[^#\n]*\bsrun\s+(.*)$", joined, re.M)]
    for line in (*re.findall(r"^#SBATCH\s+(.*)$", text, re.M), *asked_by_srun):
        words = re.split(r"\s#", line)[0].split()
        for word, following in zip(words, [*words[1:], ""], strict=True):
            name, sign, value = word.removeprefix("--").partition("=")
            if word[:2] in _SHORT:
                name, value, sign = _SHORT[word[:2]], word[2:].lstrip("="), word[2:]
            if name in _READ and (word.startswith("--") or name in _SHORT.values()):
                given[name] = value if sign else following
    found = {name: number for name, value in given.items() if (number := _number(name, value))}
    ranks = re.search(r"^[^#\n]*\b(?:mpirun|mpiexec)\s[^\n]*?(?<=\s)(?:-np|-n|--np)[= ]\s*(\d{1,8})\b", joined, re.M)
    if ranks and not found:
        return {"nodes": "1", "ntasks-per-node": ranks[1]}
    nodes = found.get("nodes", 1)
    for total, each in (("gpus", "gpus-per-node"), ("ntasks", "ntasks-per-node")):
        whole = found.get(total, 0)
        if whole and whole % nodes == 0:
            found.setdefault(each, whole // nodes)
    if "gres" in found:
        found.setdefault("gpus-per-node", found["gres"])
    if "gpus-per-task" in found and "ntasks-per-node" in found:
        found.setdefault("gpus-per-node", found["gpus-per-task"] * found["ntasks-per-node"])
    return {name: str(found[name]) for name in ("nodes", "gpus-per-node", "ntasks-per-node") if name in found}


def variables(wanted: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job that asked for this, as a script reads it."""
    return {name: wanted[key] for name, key in _VARIABLES.items() if key in wanted}


def _number(name: str, value: str) -> int:
    """The count of '4', '4-8', 'h100:8' or 'gpu:h100:8(S:0-1)'; 0 where it is none, or other devices'."""
    if name == "gres":
        value = next((part for part in value.split(",") if part.split(":")[0] == "gpu"), "")
        value = value + ":1" if value == "gpu" else value
    digits = re.match(r"\d+", re.sub(r"\(.*", "", value).rpartition(":")[2])
    return int(digits[0]) if digits and len(digits[0]) < 10 else 0
