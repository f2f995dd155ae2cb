"""Which device a command runs on, by name. CUDA, Ascend (npu) and Apple (mps) have not been run here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from minglm.errors import InputError, nearest
from minglm.runtime import machine

DEVICES = ("auto", "cpu", "cuda", "npu", "mps")


def resolve(device: str) -> str:
    """The device to use: "auto" is cuda or mps where there is one, else cpu.

    "npu" loads torch_npu, which nothing else does.

    Raises:
        InputError: an unknown name, or a device that is not there; says what to install.
    """
    import torch

    if device not in DEVICES:
        raise InputError(f"--device {device!r}: not one of {', '.join(DEVICES)}{nearest(device, DEVICES)}")
    if device == "auto":
        return machine.default_device()
    if device == "npu":
        if importlib.util.find_spec("torch_npu") is None:
            raise InputError(
                "--device npu: torch_npu is not installed; pip install torch_npu for torch "
                f"{torch.__version__.split('+')[0]}, with Ascend's CANN"
            )
        import torch_npu  # noqa: F401  (registers the device)
    is_there: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "npu": lambda: torch.get_device_module("npu").is_available(),
    }
    if not is_there[device]():
        raise InputError(
            f"--device {device}: torch {torch.__version__} finds none on this machine; install its driver and a torch "
            "built for it, or use --device cpu"
        )
    return device
