"""What several commands share: their flags, and where sentences come from."""

import argparse
import sys
from typing import Annotated

from electra_flax.config.ranges import Range
from electra_flax.errors import UserError
from electra_flax.runtime.flags import Command, Flag, Overridden, fields_help
from electra_flax.text import without_halves


class Devices(Command):
    """Devices."""

    simulate_devices: Annotated[int | None, Range(1, 1024), "N"] = None
    """run on N simulated CPU devices (1 to 1,024)"""

    def use_devices(self) -> None:
        """Choose JAX's devices. Must come before anything asks for them."""
        import jax

        from electra_flax.runtime.processes import use_cpu_where_there_is_nothing_else

        use_cpu_where_there_is_nothing_else()
        if self.simulate_devices is not None:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", self.simulate_devices)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 2**16):  # JAX would wait for minutes
        raise argparse.ArgumentTypeError(f"{text}: expected HOST:PORT with a port from 1 to 65,535")
    return text


class Processes(Command):
    """Several processes.

    On a TPU slice the hosts find each other. Elsewhere start the same command on every host, with these three flags.
    """

    coordinator: Annotated[str | None, _address, "HOST:PORT"] = None
    """address where process 0 listens"""
    num_processes: Annotated[int | None, Range(1, 2**16), "N"] = None
    """number of processes"""
    process_id: Annotated[int | None, Range(0, 2**16 - 1), "I"] = None
    """number of this process, from 0"""

    @property
    def group(self) -> tuple[str, int, int] | None:
        """Return all three, or None where none is given. Raises UserError for some of them."""
        if self.coordinator is None and self.num_processes is None and self.process_id is None:
            return None
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            raise UserError("give --coordinator, --num-processes and --process-id together, or none of them")
        return self.coordinator, self.num_processes, self.process_id


def run_fields_help() -> str:
    """Return the end of the help of what takes a run's configuration: its fields."""
    fields = "fields of the configuration, each set by --section.field VALUE:"
    return f"{fields}\n\n{fields_help(Overridden.fields(), 'from the preset')}"


Texts = Annotated[tuple[str, ...], Flag(positional=True, nargs="*")]


def texts_or_stdin(given: tuple[str, ...]) -> list[str]:
    """Return the sentences given, or the lines of the standard input that are not blank.

    Raises UserError where there is none, or where the lines are in no encoding that can be told.
    """
    from electra_flax.files import decode  # with pydantic, for which --help does not wait

    texts = [without_halves(text) for text in given]
    if not texts:
        lines = decode(sys.stdin.buffer.read(), "standard input").split("\n")  # texts hold other separators
        texts = [line.rstrip("\r") for line in lines if line.strip()]
    if not texts:
        raise UserError("no sentences: give them as arguments, or one per line on the standard input")
    return texts
