"""Ctrl-C while a command is still loading: it ends at once, with one word and no traceback.

Python would raise KeyboardInterrupt in the middle of an import. There it hits code that nobody guards, or a library
that takes it for a missing module: numpy then fails with an ImportError, and some go on without what they miss.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def end_at_once_while_importing() -> None:
    """Handle SIGINT so from now on; outside of imports it raises KeyboardInterrupt, as ever. For `__main__` only.

    Where SIGINT is ignored (a job in the background) it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def _handle(_number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"stopped\n")
            os._exit(130)  # an exception would be in the hands of whoever is importing
        frame = frame.f_back
    raise KeyboardInterrupt
