"""Worker processes: tasks in, results out in order, and the document named on which a worker died."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from electra_flax.errors import RunError, UserError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_note_file: int | None = None
_place = ""


class WorkerError(RunError):
    """The run failed in a worker; the message says on what."""


def note(place: str) -> None:
    """Note what is worked on now, for the message should it fail or the process die; workers call this."""
    global _place
    _place = place
    if _note_file is not None:
        with suppress(OSError):  # a full disk: what the work itself cannot write says so
            os.pwrite(_note_file, place.encode()[:500].ljust(500), 0)  # over the last note, in one call: never half


def _start_worker(notes: Path) -> None:
    global _note_file
    with suppress(OSError):
        _note_file = os.open(notes / str(os.getpid()), os.O_WRONLY | os.O_CREAT)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker waits for tasks forever when the process that gives them is killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _call(function: Callable[[_Task], _Result], task: _Task) -> _Result:
    try:
        return function(task)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # the user needs the document more than the traceback
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise WorkerError(
            f"{_place}: {reason}: unexpected document: remove it, run the same command with a new --out, and "
            "please report it"
        ) from error


class Pool:
    """`num_workers` processes, started when first needed; one worker is this process itself.

    `notes` is a folder of the workers' own.
    """

    def __init__(self, num_workers: int, notes: Path) -> None:
        self._num_workers = num_workers
        self._notes = notes
        self._executor: ProcessPoolExecutor | None = None
        self._processes: list[Any] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def in_order(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[tuple[_Task, _Result]]:
        """Yield (task, function(task)) in the order of the tasks, with at most a few of them in memory.

        Raises WorkerError where a worker dies.
        """
        if self._num_workers == 1:
            yield from ((task, _call(function, task)) for task in tasks)
            return
        executor = self._executor or self._start()
        waiting: deque[tuple[_Task, Future[_Result]]] = deque()
        try:
            for task in tasks:
                with _ctrl_c_waits():  # a task that finds no worker idle may start one
                    waiting.append((task, executor.submit(_call, function, task)))
                # Enough that no worker waits for the reader, few enough that memory holds them: each is megabytes.
                if len(waiting) > 2 * self._num_workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        except BrokenProcessPool:
            executor.shutdown()  # until its thread has collected the exit codes: only one reader gets them
            raise WorkerError(_obituary(self._processes, self._notes)) from None

    def _start(self) -> ProcessPoolExecutor:
        shutil.rmtree(self._notes, ignore_errors=True)
        self._notes.mkdir()
        # Forked by a server, not by this process: the progress bar and the tokenizer have threads, which a fork may
        # leave holding locks. The server imports once what every worker needs.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["data_prep.shards"])
        executor = ProcessPoolExecutor(self._num_workers, context, _start_worker, (self._notes,))
        self._executor = executor  # known to __exit__ from now on
        resource_tracker.ensure_running()  # its own start would unblock Ctrl-C: first
        with _ctrl_c_waits():
            for _ in range(self._num_workers):
                executor.submit(os.getpid)  # a process is started for each task that finds none idle
        self._processes = multiprocessing.active_children()
        return executor


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Let a Ctrl-C pressed meanwhile be heard at the end.

    It goes to all processes: those started while it is blocked never hear it and are ended by this one, which must
    have heard of each of them. Blocked is not enough here: another thread may take the signal, and Python raises
    KeyboardInterrupt in the main one all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _obituary(processes: list[Any], notes: Path) -> str:
    # The pool ends the others with SIGTERM (-15).
    dead = [process for process in processes if process.exitcode not in (0, -15, None)] or processes
    places = [(notes / str(process.pid)) for process in dead]
    where = "; ".join(path.read_text().strip() for path in places if path.exists() and path.stat().st_size)
    code = dead[0].exitcode if dead else "?"
    hint = " (killed; out of memory?)" if code == -9 else ""
    return (
        f"a worker died with exit code {code}{hint} at {where or 'its start'}: nothing is lost: "
        "run the same command again, with fewer --workers if memory is short"
    )
