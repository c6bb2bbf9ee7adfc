"""Host memory: whether a run fits, and what a compiler leaves."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from electra_flax import formats
from electra_flax.config.architecture import Architecture
from electra_flax.config.schema import Config
from electra_flax.errors import UserError

if TYPE_CHECKING:  # JAX is heavy
    from jax.sharding import Mesh


def give_back_unused() -> None:
    """Return freed memory to the system; half a gigabyte after a train step was compiled. glibc alone keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def check_fits(config: Config, mesh: Mesh) -> None:
    """Raise UserError for a run on devices made of this host's memory that it cannot hold, before any is compiled.

    What is counted is the least that a step can do with, so that nothing is refused that might fit. For accelerators,
    which have memory of their own, `electra-flax plan` has the whole answer.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return
    free = available()
    num_local = len(mesh.local_devices)
    share = num_local / mesh.size
    # float32: parameters, moments, gradients
    state = 4 * 4 * least_parameters(config.architecture) * mesh.shape["data"] * share
    activations = max(_least_activations(phase.config) for phase in config.phases) * share
    if free is not None and state + activations > free:
        raise UserError(
            f"this run needs at least {formats.size(state + activations)} of this machine's memory, which has "
            f"{formats.size(free)} left ({formats.size(state)} for parameters, moments and gradients on {num_local} "
            f"of its devices, {formats.size(activations)} for activations): make model, generator or "
            "training.batch_size smaller, raise training.gradient_accumulation_steps, or take fewer simulated devices"
        )


def least_parameters(architecture: Architecture) -> int:
    """Return the parameters of tables and of the matrices of layers: all but heads, biases and LayerNorms."""
    model = architecture.model
    tables = (model.vocab_size + model.max_position_embeddings + model.type_vocab_size) * model.embedding_size
    return tables * (2 if architecture.has_delta else 1) + sum(
        sizes.num_hidden_layers * (4 * sizes.hidden_size**2 + 2 * sizes.hidden_size * sizes.intermediate_size)
        for sizes in (model, *(architecture.learned.generator,) * (1 + architecture.has_two_towers))
        if sizes is not None
    )


def _least_activations(config: Config) -> int:
    """Return bytes of the layers' inputs of one slice of the batch, which the backward pass needs."""
    architecture = config.architecture
    widths = max(
        sizes.hidden_size * sizes.num_hidden_layers for sizes in (architecture.model, architecture.generator_sizes)
    )
    rows = config.training.batch_size // config.training.gradient_accumulation_steps
    if config.is_packed and config.packing.batch == "tokens":
        rows //= config.packing.segments  # if all rows were as full of examples as they may be
    return widths * rows * config.data.max_seq_length * (4 if architecture.compute_dtype == "float32" else 2)


def available(meminfo: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return bytes that can still be taken, swap included: the machine's, or the control group's limit if less.

    None where the system does not say.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError):
        return None
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            free = min(free, int((groups / limit).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return free
