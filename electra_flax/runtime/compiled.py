"""Loops over bytes and characters, compiled by numba where Python would be the bottleneck."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs as machine code, without the GIL.

    Made once for all processes, or in each where no folder can keep it.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)
