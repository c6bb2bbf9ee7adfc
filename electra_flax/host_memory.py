"""Host memory: huge pages, asked for before anything heavy is imported, and what a compiler leaves behind.

A step on a CPU allocates gigabytes anew, and touching them in pages of 4 KiB is a sixth of its time
(docs/performance.md). glibc reads the wish once, when a process starts.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def restart_environment(environment: Mapping[str, str], setting: str, libc: str) -> dict[str, str] | None:
    """The environment in which malloc asks for huge pages, or None where that is set, always on, or impossible."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    name, _, version = libc.partition(" ")
    knows = name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= (2, 35)
    if _TUNABLE in tunables or "[madvise]" not in setting or not knows:
        return None
    return {**environment, "GLIBC_TUNABLES": f"{tunables}:{_TUNABLE}=1".lstrip(":")}


def huge_page_environment() -> dict[str, str] | None:
    """restart_environment of this process on this machine."""
    try:
        setting, libc = _SETTING.read_text(), os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # no Linux, no glibc
        return None
    return restart_environment(os.environ, setting, libc)


def restart_with_huge_pages() -> None:
    """Replaces this process by itself, with its arguments and number, where huge pages must be asked for."""
    environment = huge_page_environment()
    if environment is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def give_back_unused() -> None:
    """Returns freed memory to the system; half a gigabyte after a train step was compiled. glibc alone keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
