"""A Ray cluster, or one on this machine: connecting, in one place for rollouts (`minglm rl --engine ray`) and sweeps
(`clustersim sweep --engine ray`). Ray is optional and imported here only; neither torch nor numpy is needed.
"""

from __future__ import annotations

import os
from typing import Any

from minglm import datafiles
from minglm.errors import InputError

STARTS = 3  # tries to start a cluster on this machine


def check() -> None:
    """Refuse in one line where Ray is not installed."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise InputError(
            f"engine ray: the ray package is not installed; {datafiles.install_hint('dist')}, or use --engine local"
        )


def _answers(address: str | None, wait_s: float = 5.0) -> None:
    """Ray itself retries for minutes where nothing listens; a socket says so in seconds."""
    import socket

    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", "local", or none: Ray knows at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), wait_s).close()
    except OSError as err:
        raise InputError(
            f"Ray at {address}: {err.strerror or err}; start one with `ray start --head`, give its host:port, or use "
            "--engine local"
        ) from None


def connect(address: str | None = None, cpus: int | None = None):
    """The `ray` module, connected: to `address` ("host:port", "ray://host:10001" or "auto"), else to RAY_ADDRESS if
    set, else to a new cluster on this machine that ends with the program.

    Raises:
        InputError: Ray absent, or nothing answers at the address.
    """
    check()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray starts workers at niceness 15: on a machine with other work they hardly get a processor, and an actor that is
    # started again after a death may need minutes until it speaks, as if it hung.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    _answers(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    for left in reversed(range(STARTS)):
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(num_cpus=cpus, include_dashboard=False, _metrics_export_port=0, **quiet)
            return ray
        except Exception as err:  # a node that does not start in time is a plain Exception
            if not address and left and "timed out during startup" in str(err):
                ray.shutdown()  # what has started of it ends; Ray gives a node 30 s, too little where others compute
                continue
            first = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
            raise InputError(
                f"Ray at {address or 'this machine'}: {first}; start one with `ray start --head`, give its host:port, "
                "or use --engine local"
            ) from None
