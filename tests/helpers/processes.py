"""Several processes of one run, as torchrun would start them."""

import os
import socket
import subprocess

from minglm import datafiles


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_ranks(world: int, command: list[str], **changes) -> list[subprocess.Popen]:
    """One process for each rank; `changes` go into their environment."""
    port = str(free_port())
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(r),
                "LOCAL_RANK": str(r),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": str(datafiles.root()),
                **changes,
            },
        )
        for r in range(world)
    ]
