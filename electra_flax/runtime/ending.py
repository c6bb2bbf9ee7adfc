"""The one place where commands end: an exception becomes an exit code and a line on the standard error."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from electra_flax.errors import INTERRUPTED, UNFORESEEN, Preempted, RunError, UserError, escaped, traceback_note
from electra_flax.runtime.console import write_line

# What a disk or its network answers for a while, whatever the file's name.
_PASSING = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EREMOTEIO,
})  # fmt: skip
_STDOUT = "the standard output"


def run_command(program: str, action: Callable[[], int | None], out: object = None, interrupted: str = "") -> int:
    """Return what `action` returns (None: 0), or the exit code of what it raises, after one line on the standard error.

    `out` is the folder that the command writes, named where a full disk does not say which it is; `interrupted` says
    what Ctrl-C leaves. Names in the line that hold line breaks or escapes are shown escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as services start programs
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding that lacks a letter must not end a command
            stream.reconfigure(errors="backslashreplace")
    try:
        code = action() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has what it wanted
        _forget_stdout()
        return 0
    except KeyboardInterrupt:
        return _say(program, INTERRUPTED, f"interrupted: {interrupted}" if interrupted else "interrupted")
    except Preempted as error:
        return _say(program, error.exit_code, str(error))
    except Exception as error:
        code, message = classify(error, _STDOUT if _is_of_stdout(error) else out)
        return _say(program, code, f"error: {message}")


def classify(error: Exception, out: object = None) -> tuple[int, str]:
    """Return (exit code, message) of an exception that ends a command.

    1: the user can fix it; every OSError that names a file, a full disk, memory that does not suffice. 3: the run
    failed. 70: whatever nobody foresaw (a device that halts, a network that is away); the traceback is kept in a file.
    """
    if foreseen := _foreseen(error, out):
        return foreseen
    text = str(error)
    kept = traceback_note(error) or keep_traceback(error, _own_file())
    return UNFORESEEN, (
        f"unexpected error: {type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else 'no message'} "
        f"(traceback: {kept}); try the same command again"
    )


def is_foreseen(error: Exception) -> bool:
    """Return whether the line says all: no traceback is kept."""
    return _foreseen(error, None) is not None


def _foreseen(error: Exception, out: object) -> tuple[int, str] | None:
    if isinstance(error, UserError | RunError | Preempted):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        if error.errno in _PASSING:
            return None
        return UserError.exit_code, os_problem(error, out)
    text = str(error)
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in text:  # Python's, of a full disk
        return UserError.exit_code, f"{error.strerror}: free some space there, or set TMPDIR to another folder"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:  # JAX's word for a device's memory
        return UserError.exit_code, (
            f"not enough memory ({text.splitlines()[0] if text else 'this host has no more'}): use a smaller batch or "
            "model, more training.gradient_accumulation_steps, fewer --workers, or a host with more memory"
        )
    return None


def os_problem(error: OSError, out: object = None) -> str:
    """Return an OSError on one line: the path, the reason, the fix."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    reason = error.strerror or type(error).__name__
    if error.errno == errno.ENOSPC:
        where = out if out is not None else path
        return f"{where}: the disk is full: free some space and run the same command again"
    return f"{path}: {reason}"


def _own_file() -> Path:
    try:
        folder = tempfile.gettempdir()
    except OSError:  # no disk has room
        folder = "."
    return Path(folder) / f"electra-flax-error-{os.getpid()}.txt"


def keep_traceback(error: BaseException, path: Path) -> Path | str:
    """Write the traceback to a file, for a report; return its path."""
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        return f"not kept: {problem.strerror}"
    return path


def _say(program: str, code: int, message: str) -> int:
    write_line(f"{program}: {escaped(message)}")
    return code


def print_whole(text: str) -> None:
    """Print a long text, whose reader may have enough before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _forget_stdout()
    except OSError as error:
        _forget_stdout()
        raise SystemExit(os_problem(error, _STDOUT)) from None


def _is_of_stdout(error: Exception) -> bool:
    """Return whether a full disk that has no name is the standard output's: a file with no room left, or a device."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC or error.filename is not None:
        return False
    try:
        file = sys.stdout.fileno()
        is_full = stat.S_ISREG(os.fstat(file).st_mode) and os.fstatvfs(file).f_bavail == 0
        os.write(file, b"")
    except ValueError:  # closed, or no file
        return False
    except OSError as problem:
        is_full = problem.errno == errno.ENOSPC
    if is_full:
        _forget_stdout()
    return is_full


def _forget_stdout() -> None:
    """Send what is left in the buffer nowhere, or Python complains once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
