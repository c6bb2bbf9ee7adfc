"""Ctrl-C where there is nothing to save: KeyboardInterrupt, but one line while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from electra_flax.errors import INTERRUPTED


def hear(program: str) -> None:
    """Have Ctrl-C end the process at once while a module is imported, which takes seconds and holds nothing.

    The code of extensions makes other errors of a KeyboardInterrupt, or prints its traceback. Elsewhere it is raised as
    ever.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            os.write(2, f"{program}: interrupted\n".encode())
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, receive)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
