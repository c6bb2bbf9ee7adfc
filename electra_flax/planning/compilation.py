"""A run's own train step, compiled for a TPU that is not here; what came out is kept, by the program's hash."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.errors import RunError, UserError
from electra_flax.files import parse_json, read_bytes, write_whole
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.attention_choice import kernel_specs
from electra_flax.model.sharding import batch_sharding, state_shardings
from electra_flax.planning.kernel_schedule import schedule_cycles
from electra_flax.runtime.console import is_progress_shown
from electra_flax.runtime.tpus import Slice, parse_slice
from electra_flax.training import initial_state, step
from electra_flax.training.objectives import make_objective

log = logging.getLogger("electra_flax")

_SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)  # any ids: they change constants, not costs
_SECONDS_PER_LAYER = 5.0  # that the compiler takes on two cores
_PLAIN_SECONDS = 30.0  # between two lines where no terminal reads them


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, as JAX's memory_analysis states them."""

    arguments: int
    temporaries: int
    outputs: int
    """Beyond those that reuse the arguments' memory."""
    code: int
    limit: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs + self.code


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a train step: all that a plan is computed from."""

    memory: Memory | None
    """None where the program does not fit."""
    needed_bytes: int
    """Memory on each device."""
    text: str
    kernel_cycles: dict[str, int]


def compile_step(config: Config, where: Slice, mesh: Mesh, attend: Attend) -> Compiled:
    """Return the train step compiled for the mesh, from the cache where the same program was compiled before."""
    state = initial_state.abstract_state(config)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )
    train_step: Any = step.make_train_step(config, make_objective(config, _SPECIAL), mesh, attend)
    lowered = train_step.trace(state, initial_state.abstract_batch(config, batch_sharding(mesh))).lower(
        lowering_platforms=("tpu",)
    )
    # Traced anew each time: only the program itself, not the configuration or the source, says whether it changed.
    path = cache_folder() / f"{_program_hash(lowered.as_text(), where)}.json.gz"
    if (cached := _read_cache(path)) is not None:
        return cached
    layers = config.model.num_hidden_layers + config.generator.num_hidden_layers
    with _clock(f"compiling for {where.accelerator_type}", _SECONDS_PER_LAYER * layers):
        compiled = _compile(lowered, where)
        if compiled.memory is not None and attend is not xla_attention:
            rows = config.training.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
            kernels = [
                {"rows": rows // config.training.gradient_accumulation_steps, "dtype": config.training.compute_dtype,
                 "spec": {**dataclasses.asdict(spec), "matmul_dtype": jnp.dtype(spec.matmul_dtype).name}}
                for spec in kernel_specs(config.architecture, config.data.max_seq_length, mesh, config.is_packed)
            ]  # fmt: skip
            anywhere = parse_slice(f"{where.generation.prefix}-8").topology_name  # a device's schedule
            compiled = dataclasses.replace(compiled, kernel_cycles=schedule_cycles(anywhere, kernels))
    _write_cache(path, compiled)
    return compiled


def _compile(lowered: Any, where: Slice) -> Compiled:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"the step does not compile for {where.accelerator_type}: {reason}") from None
        return Compiled(None, _needed_bytes(str(error)), "", {})  # kept too: that it does not fit took as long to find
    analysis = compiled.memory_analysis()
    memory = Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        # The state is donated: its next version lies where the old one did.
        outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        limit=where.generation.memory_bytes,
    )
    return Compiled(memory if memory.total <= memory.limit else None, memory.total, compiled.as_text(), {})


def _needed_bytes(message: str) -> int:
    """Return the bytes in "Used 25.31G of 15.48G hbm" or "for HLO temporaries (18.00G) exceeds available HBM"."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|temporaries \(([\d.]+)([KMGT])\)", message)
    if not match:
        raise RunError(f"the compiler ran out of memory in a way that plan does not know: {message.splitlines()[0]}")
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


@contextmanager
def _clock(label: str, usual_seconds: float) -> Iterator[None]:
    """Show the time that passes beside the usual one: the compiler does not say how far it is."""
    started, done = time.monotonic(), threading.Event()
    usual = f"{label}: usually about {max(1, round(usual_seconds / 60))} min on two cores, more on a busy machine"
    is_terminal, is_shown = sys.stderr.isatty(), is_progress_shown()
    log.info(usual)

    def tick() -> None:
        while is_shown and not done.wait(1 if is_terminal else _PLAIN_SECONDS):
            passed = f"{label}: {time.monotonic() - started:.0f} s so far"
            before, after = ("\r", "") if is_terminal else ("", "\n")
            print(before + passed, end=after, file=sys.stderr, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
    log.info(("\n" if is_terminal else "") + "%s took %.0f s", label, time.monotonic() - started)


def cache_folder() -> Path:
    """Return the folder of compiled programs, by hash; safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "electra-flax" / "plan"


def _program_hash(text: str, where: Slice) -> str:
    # The same program is another one to another compiler, or under other flags of it.
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")]
    options = os.environ.get("LIBTPU_INIT_ARGS", "")
    return hashlib.sha256("\n".join([where.topology_name, *versions, options, text]).encode()).hexdigest()[:32]


def _read_cache(path: Path) -> Compiled | None:
    try:
        return parse_json(gzip.decompress(read_bytes(path)), Compiled, path, "it is compiled again")
    except (OSError, EOFError, zlib.error, UserError):  # absent, cut short or of another version
        return None


def _write_cache(path: Path, compiled: Compiled) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, gzip.compress(json.dumps(dataclasses.asdict(compiled)).encode(), compresslevel=3))
