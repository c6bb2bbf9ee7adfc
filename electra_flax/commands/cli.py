"""electra-flax: the table of its commands, and how the process of one begins and ends."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from electra_flax.commands.configs import Configs
from electra_flax.commands.corrupt import Corrupt
from electra_flax.commands.export import Export
from electra_flax.commands.finetune import Finetune, Predict, Scoreboard
from electra_flax.commands.models import Detect, Fill, Score, Show, Verify
from electra_flax.commands.pretrain import Evaluate, Pretrain
from electra_flax.commands.reports import Doctor, Plan, Report
from electra_flax.errors import Preempted
from electra_flax.runtime.console import LogHandler
from electra_flax.runtime.ending import run_command
from electra_flax.runtime.flags import Command, Parser, exit_codes, make_parser, parse

COMMANDS: tuple[type[Command], ...] = (
    Pretrain, Corrupt, Evaluate, Export, Show, Verify, Detect, Fill, Score, Report, Doctor, Finetune, Scoreboard,
    Predict, Plan, Configs,
)  # fmt: skip


_SHIPPED = (
    "tiny-ko (a small Korean model) and the presets (electra-flax configs) ship with the package: give the name where "
    "a model or a configuration is expected. A file or folder here with the same name comes first."
)


def parser() -> Parser:
    """Return that of electra-flax."""
    text = "Pretrains ELECTRA with JAX and Flax on TPU, GPU or CPU, and publishes the result."
    return make_parser("electra-flax", text, f"{_SHIPPED}\n\n{exit_codes()}", COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors are one line. Without `argv`, the process is the command's."""
    command = parse(parser(), argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[LogHandler()])
    logging.getLogger("electra_flax").setLevel(logging.INFO)
    # Orbax and Grain print the traceback of what they raise too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Where a save or a restore fails, Orbax leaves tasks behind whose errors nobody asks for.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if sys.unraisablehook is sys.__unraisablehook__:  # not the one of a program that calls this
        sys.unraisablehook = _without_late_writes
    is_from_shell = argv is None  # not called
    if not (is_from_shell and isinstance(command, Pretrain | Finetune | Scoreboard)):
        return _run(command)
    signal.signal(signal.SIGTERM, _nothing_to_save)
    # Registered before JAX is imported, so that it comes after what JAX registers.
    atexit.register(_ignore_signals)
    code = _run(command)
    for number in (signal.SIGTERM, signal.SIGINT):  # all is said: what still waits for threads may be cut short
        signal.signal(number, lambda *unused: os._exit(code))
    if "jax" in sys.modules:  # else nothing was begun that could keep it
        from electra_flax.runtime import processes

        processes.leave(code)
    return code


def _run(command: Command) -> int:
    return run_command("electra-flax", command.run, getattr(command, "out", None) or getattr(command, "workdir", None))


def _without_late_writes(unraisable: sys.UnraisableHookArgs) -> None:
    """Say nothing of the writes of a failed save that end after Orbax closed their event loop; the rest as ever.

    They may come after the line that says what to do, which must be the last.
    """
    if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)


def _ignore_signals() -> None:
    """Keep the exit code from a signal that comes last: Python, while it ends, gives signals back their default."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _nothing_to_save(number: int, frame: object) -> None:
    """Answer SIGTERM before the run began as it is answered within, and at once."""
    print(
        "electra-flax: stopped as asked, with nothing to save; the same command continues", file=sys.stderr, flush=True
    )
    os._exit(Preempted.exit_code)
