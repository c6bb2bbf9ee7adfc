"""Keep a workdir to one run, its small files in the bucket and its tracebacks in it, whatever number of processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from electra_flax.errors import UserError, note_traceback
from electra_flax.runtime import processes
from electra_flax.runtime.ending import is_foreseen, keep_traceback
from electra_flax.storage.workdir import Workdir

log = logging.getLogger("electra_flax")


@contextmanager
def traceback_kept(work: Workdir) -> Iterator[None]:
    """Keep the traceback of what nobody foresaw in the workdir, and have the last line name the file."""
    try:
        yield
    except Exception as error:
        name = f"error-{jax.process_index()}.txt"
        if not is_foreseen(error) and isinstance(keep_traceback(error, work.folder / name), Path):
            note_traceback(error, f"{work}/{name}")
            try:
                work.push()
            except UserError as problem:
                log.warning("the traceback is only in %s: %s", work.folder / name, problem)
        raise


@contextmanager
def only_here(work: Workdir) -> Iterator[None]:
    """Keep the workdir to this run, and its small files as they are in the bucket.

    Raises UserError, in all processes, where another run has it.
    """
    with ExitStack() as stack:
        with processes.together():
            if processes.is_main():
                stack.enter_context(work.lock())
                work.pull()
        try:
            yield
        finally:
            try:
                push(work)
            except UserError as problem:
                log.warning("the newest files are only in %s: %s", work.folder, problem)


def push(work: Workdir) -> None:
    """Bring the small files of process 0 to where the workdir is. Raises UserError, in that process."""
    if processes.is_main():
        work.push()
