"""One run, several processes: joining, agreeing at the start, leaving."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from electra_flax import __version__
from electra_flax.errors import Preempted, Problem, Unavailable, UserError, reason, traceback_note
from electra_flax.runtime import metadata

log = logging.getLogger("electra_flax")

_SHOWN = 300  # bytes of a value that processes show each other, beside a digest of the whole
_LEAVE_SECONDS = 30  # that a process waits, when it is done, for whatever is still going on


@contextmanager
def joined(group: tuple[str, int, int] | None) -> Iterator[None]:
    """Join as `join` does; what JAX cannot do with the others inside is Unavailable: one of them is gone."""
    join(group)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):  # memory is nobody else's fault
            raise
        kept = traceback_note(error)
        raise Unavailable(
            f"process {jax.process_index()}: lost contact with the other processes ({reason(error)}): one of them "
            "ended, see its log; the same command on all hosts continues from the last checkpoint"
            + (f" (traceback: {kept})" if kept else "")
        ) from None


def join(group: tuple[str, int, int] | None) -> None:
    """Connect this process with the others of the run. Must come before anything asks JAX for its devices.

    On a TPU VM the machine's metadata say who the others are, and a single host joins itself; elsewhere, also on a TPU
    without metadata, a run is one process, unless `group` says where process 0 listens (HOST:PORT), how many there
    are, and which this is. Raises Unavailable where the others cannot be reached, UserError for a `group` that is none.
    """
    if group is None and not (_on_tpu_vm() and metadata.names_hosts()):
        return
    # Interruptions are agreed on with everything else (Agreement), also where there is one process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if group is None:
            jax.distributed.initialize(shutdown_timeout_seconds=2 * _LEAVE_SECONDS)
        else:
            jax.distributed.initialize(*group, shutdown_timeout_seconds=2 * _LEAVE_SECONDS)
    except (RuntimeError, ValueError, OSError) as error:  # JAX's, and those of requests and sockets
        why = reason(error)
        if group is None:  # nobody's mistake: a host of the pod is away
            raise Unavailable(
                f"cannot reach the other hosts of this TPU slice: {why}; try the same command again"
            ) from None
        kind = UserError if isinstance(error, ValueError) else Unavailable
        raise kind(
            f"cannot reach the other processes (process 0 at {group[0]}): {why}; start the command on all hosts"
        ) from None
    if jax.process_index():
        log.setLevel(logging.WARNING)  # process 0 speaks for all


def leave(code: int) -> None:
    """End this process with `code` soon where it would wait for what does not come; else return.

    The parts of a save that failed wait five minutes for each other. The other processes of a run that failed may be
    waiting for this one in a step or a save, and JAX ends them once it is gone; where they went first, XLA waits for
    them without end while Python ends, when no timer runs any more. A run of several that did not fail ends together.
    """
    # The count alone would first look for devices.
    is_one_of_several = jax.distributed.is_initialized() and jax.process_count() > 1
    if is_one_of_several and code in (0, Preempted.exit_code):
        return
    alone = threading.Timer(_LEAVE_SECONDS, os._exit, [code])
    alone.daemon = True
    alone.start()
    if is_one_of_several:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(jax.errors.JaxRuntimeError):  # of the others, some are gone
            jax.distributed.shutdown()
        os._exit(code)


def is_main() -> bool:
    """Return whether this process speaks for all: logs, metrics, configuration."""
    return jax.process_index() == 0


def _on_tpu_vm() -> bool:
    if os.environ.get("JAX_FORCE_TPU_INIT"):  # JAX's own word for: believe the metadata
        return True
    platforms = getattr(jax.config, "jax_platforms", None) or "tpu"
    return "tpu" in platforms.split(",") and _has_tpu() and importlib.util.find_spec("libtpu") is not None


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def use_cpu_where_there_is_nothing_else() -> None:
    """Keep an installed TPU compiler from looking, at length and aloud, for a TPU that is not there."""
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    if not (_has_tpu() or has_gpu or os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_FORCE_TPU_INIT")):
        jax.config.update("jax_platforms", "cpu")


def require_agreement(values: Mapping[str, str]) -> None:
    """Raise UserError, in every process, naming the first of `values` of which another has not what process 0 has.

    The release and the number of devices are compared too.
    """
    if jax.process_count() == 1:
        return
    values = {
        "release": f"electra-flax {__version__}, jax {jax.__version__}",
        "number of devices": str(jax.local_device_count()),
        **values,
    }
    # Gathered as arrays of one size: the beginning of each value for the message, its digest for the comparison.
    texts = np.stack([_octets(f"{_digest(text)} {text}", _SHOWN) for text in values.values()])
    everyone = np.asarray(multihost_utils.process_allgather(texts))
    for process, theirs in enumerate(everyone):
        for number, name in enumerate(values):
            if (theirs[number] != everyone[0][number]).any():
                ours, other = (_text(octets[number]).partition(" ")[2] for octets in (everyone[0], theirs))
                differ = f"{other}, not {ours}" if other != ours else f"they differ after {ours}"
                raise UserError(f"process {process} and process 0 differ in {name}: {differ}")


def first_problem(problem: str) -> str:
    """Return the problem of the first process that has one, or "": the same answer in all, so none waits."""
    if jax.process_count() == 1:
        return problem
    everyone = np.asarray(multihost_utils.process_allgather(_octets(problem, 4 * _SHOWN)))
    for process, theirs in enumerate(everyone):
        if theirs.any():
            return f"process {process}: {_text(theirs)}"
    return ""


def raise_first(problem: str) -> None:
    """Raise the Problem of the first process that has one, in all of them."""
    if problem := first_problem(problem):
        raise Problem(problem)


def end_if_asked(asked: bool, place: str) -> None:
    """Raise Preempted, in all processes, where one was `asked` to stop at a place where nothing is to be saved."""
    if first_problem("asked" if asked else ""):
        raise Preempted(f"stopped as asked {place}; the same command continues")


def as_process_0(values: np.ndarray) -> np.ndarray:
    """Return what process 0 gives, in all of them."""
    return values if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(values))


@contextmanager
def together() -> Iterator[None]:
    """Make a UserError of one process that of all: none waits for another."""
    problem = ""
    try:
        yield
    except UserError as error:
        problem = f"{error.exit_code} {error}"
    if problem := first_problem(problem):
        match = re.fullmatch(r"(process \d+: )?(\d+) (.*)", problem, re.DOTALL)
        assert match, problem
        who, code, what = match.groups(default="")
        raise (Unavailable if int(code) == Unavailable.exit_code else UserError)(who + what)


def wait_for_all(what: str) -> None:
    """Return when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _digest(text: str) -> str:
    """Return the hash of the whole, where only the beginning of a value is sent."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:32]


def _octets(text: str, length: int) -> np.ndarray:
    octets = np.zeros(length, np.uint8)
    encoded = text.encode(errors="backslashreplace")[:length]
    octets[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return octets


def _text(octets: np.ndarray) -> str:
    return bytes(octets).rstrip(b"\0").decode(errors="replace")
