"""A run's own train step, compiled for a TPU that is not here; what came out is kept, by the program's hash."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import zlib
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
from electra_flax.model.sharding import batch_sharding, state_shardings, whole
from electra_flax.planning.compile_times import stage, timed
from electra_flax.planning.kernel_schedule import schedule_cycles
from electra_flax.runtime.tpus import Slice, parse_slice
from electra_flax.training import initial_state, step
from electra_flax.training.objectives import make_objective

_SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)  # any ids: they change constants, not costs
_CONTINUATIONS = (5,)


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
    has_kernel, slice_type = attend is not xla_attention, where.accelerator_type
    stages = 3 if has_kernel else 2
    with stage(f"1 of {stages}, tracing the train step"):
        lowered = _lower(config, mesh, attend)
    # Traced anew each time: only the program itself, not the configuration or the source, says whether it changed.
    path = cache_folder() / f"{_program_hash(lowered.as_text(), where)}.json.gz"
    if (cached := _read_cache(path)) is not None:
        return cached
    towers = 1 + config.has_two_towers
    layers = config.model.num_hidden_layers + towers * config.generator.num_hidden_layers
    like = f"{layers} layers with {'the attention kernel' if has_kernel else 'plain attention'} on {slice_type}"
    with timed(f"2 of {stages}, compiling for {slice_type}", like, cache_folder()) as clock:
        compiled = compile_for(lowered, where)
        clock.is_kept = compiled.memory is not None  # a refusal comes sooner
    if compiled.memory is not None and has_kernel:
        rows = config.training.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
        kernels = [
            {"rows": rows // config.training.gradient_accumulation_steps, "dtype": config.training.compute_dtype,
             "spec": {**dataclasses.asdict(spec), "matmul_dtype": jnp.dtype(spec.matmul_dtype).name}}
            for spec in kernel_specs(config.architecture, config.data.max_seq_length, mesh, config.is_packed)
        ]  # fmt: skip
        anywhere = parse_slice(f"{where.generation.prefix}-8").topology_name  # a device's schedule
        with stage(f"3 of {stages}, scheduling the attention kernel"):
            compiled = dataclasses.replace(compiled, kernel_cycles=schedule_cycles(anywhere, kernels))
    _write_cache(path, compiled)
    return compiled


def _lower(config: Config, mesh: Mesh, attend: Attend) -> Any:
    state = initial_state.abstract_state(config)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )
    train_step: Any = step.make_train_step(config, make_objective(config, _SPECIAL, _CONTINUATIONS), mesh, attend)
    batch, frozen = (
        initial_state.abstract_batch(config, batch_sharding(mesh)),
        initial_state.abstract_frozen(config, whole(mesh)),
    )
    return train_step.trace(state, batch, *frozen).lower(lowering_platforms=("tpu",))


def compile_for(lowered: Any, where: Slice) -> Compiled:
    """Return a lowered step compiled for a slice, without the cycles of its kernels. Raises RunError if it fails."""
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
