"""Compile a run's own train step for a TPU that is not here: memory, predicted time and cost, before renting anything.

The TPU compiler runs on any machine. It states a program's memory exactly, and an estimate of cycles for nearly every
operation it schedules; program_cost sums them. docs/plan.md says what the prediction is good for.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from electra_flax.config.loading import config_differences
from electra_flax.config.schema import Config, Phase
from electra_flax.errors import UserError
from electra_flax.model.attention import xla_attention
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.sharding import check_batch, make_mesh, state_shardings
from electra_flax.planning import program_cost
from electra_flax.planning.compilation import compile_step
from electra_flax.planning.program_cost import Cost, Hardware
from electra_flax.planning.table import Plan
from electra_flax.runtime.host_memory import give_back_unused
from electra_flax.runtime.tpus import Generation, Slice, parse_slice
from electra_flax.training import initial_state
from electra_flax.training.flops import step_flops

log = logging.getLogger("electra_flax")

_STATE_AND_GRADIENTS = 5 / 3  # of the state, which is three times the parameters; gradients and their sum join it
PACKED_FILL = {2: 0.88, 4: 0.967, 8: 0.993}
"""{examples of a row at most: how full best fit makes rows}, the least seen on Korean text at 128 and 512 tokens."""
_COLLECTIVE_LATENCY = 1e-6  # seconds for each device in the ring

# (regex over the operation's path, part); the first match decides. Operations fused into another count as that one.
PARTS: tuple[tuple[str, str], ...] = (
    (r"/optimizer/", "optimizer"),
    (r"embeddings|(generator|corrective|cloze)_lm_head|(generator|cloze)_predictions", "embedding and MLM head"),
    (r"masking|sampling|generator_loss|corrective_loss", "embedding and MLM head"),
    (r"attention/self/.*(BTHK|BHTS)", "attention"),  # its einsums, by the letters of their shapes
    (r"attention/self/(?!query|key|value)", "softmax and dropout"),
    (r"dot_general", "matmul"),
    (r"", "elementwise"),
)


def make_plan(
    phase: Phase,
    accelerator_type: str,
    dollars_per_hour: float | None = None,
    explain: int = 0,
    fill: float | None = None,
) -> Plan:
    """Compile the train step for the slice and predict from the result; `explain` lists so many operations.

    `fill` is the share of the places of rows of one example each that hold tokens; packed rows are taken to be as full
    as PACKED_FILL says, or as that. Days and dollars are those of the phase. Where it does not fit, `ways_out` holds
    changes with which it does, each compiled too. Raises UserError where rows are packed and there is no `fill`.
    """
    where = parse_slice(accelerator_type)
    plan = _plan_one(phase, where, dollars_per_hour, explain, fill)
    if plan.fits:
        return plan
    log.info("does not fit: compiling changes that may make it fit")
    return dataclasses.replace(plan, ways_out=tuple(_ways_out(phase, where, plan, dollars_per_hour, fill)))


def _plan_one(phase: Phase, where: Slice, dollars_per_hour: float | None, explain: int, fill: float | None) -> Plan:
    num_steps, mesh = phase.end - phase.start, _mesh(phase.config, where)
    config, fill = _in_rows(phase, mesh, fill)
    attend = choose_attention(config.architecture, config.data.max_seq_length, mesh, check=False)
    compiled = compile_step(config, where, mesh, attend)
    abstract = initial_state.abstract_state(config)
    training, generation = config.training, where.generation
    plan = Plan(
        accelerator_type=where.accelerator_type,
        topology=where.topology_name,
        mesh=dict(mesh.shape),
        batch_size=training.batch_size,
        fill=fill,
        is_packed=config.is_packed,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_seq_length=config.data.max_seq_length,
        compute_dtype=training.compute_dtype,
        attention="plain" if attend is xla_attention else "kernel",
        parameters=sum(leaf.size for leaf in jax.tree.leaves(abstract.params)),
        flops_per_step=step_flops(config),
        fits=compiled.memory is not None,
        memory={"needed": compiled.needed_bytes, "limit": generation.memory_bytes},
        num_steps=num_steps,
        dollars_per_hour=where.dollars_per_hour if dollars_per_hour is None else dollars_per_hour,
        prices_date=where.price().date if dollars_per_hour is None else None,
    )
    if compiled.memory is None:
        return plan
    program = program_cost.parse(compiled.text)
    costs = program_cost.operation_costs(program, hardware(generation, compiled.kernel_cycles))
    seconds = sum(cost.seconds for cost in costs)
    places = training.batch_size * config.data.max_seq_length
    hours = seconds * num_steps / 3600
    return dataclasses.replace(
        plan,
        memory={**dataclasses.asdict(compiled.memory), "needed": compiled.memory.total},
        predicted_step_seconds=seconds,
        predicted_parts_seconds=_grouped(costs, part_of),
        predicted_basis_seconds=_grouped(costs, lambda cost: cost.basis),
        predicted_mfu=plan.flops_per_step / seconds / (where.num_devices * generation.flops_per_second),
        predicted_tokens_per_second=places / seconds,
        predicted_real_tokens_per_second=None if fill is None else fill * places / seconds,
        predicted_days=hours / 24,
        predicted_dollars=hours * plan.dollars_per_hour,
        loops_counted_once=program_cost.unbounded_loops(program),
        costliest=tuple(_costliest(costs, explain)),
    )


def hardware(generation: Generation, kernel_cycles: Mapping[str, int]) -> Hardware:
    """Return what the operations that the compiler does not estimate are costed by."""
    return Hardware(
        clock_hz=generation.clock_hz,
        hbm_bytes_per_second=generation.memory_bytes_per_second,
        link_bytes_per_second=generation.link_bytes_per_second,
        collective_latency_seconds=_COLLECTIVE_LATENCY,
        kernel_cycles=kernel_cycles,
    )


def _in_rows(phase: Phase, mesh: Mesh, fill: float | None) -> tuple[Config, float | None]:
    """Return the configuration of the rows that training would have, and how full these are."""
    config, flag = phase.config, "--long-fill" if phase.start else "--fill"
    if not config.is_packed:
        return config, fill
    if fill is None:
        raise UserError(
            f"{phase.name}data.packing=best_fit: how many rows a step has depends on the shards: give {flag} F, the "
            "share of rows that holds tokens without packing, such as 0.65; electra-data inspect DIR says it"
        )
    segments = max(known for known in PACKED_FILL if known <= config.packing.segments)
    packed = max(fill, PACKED_FILL[segments])
    unit = mesh.shape["data"] * mesh.shape["fsdp"] * config.training.gradient_accumulation_steps
    return config.of_rows(config.packing.rows_a_step(config.training.batch_size, fill / packed, unit)), packed


def _mesh(config: Config, where: Slice) -> Mesh:
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=where.topology_name, **where.compiler_options
        )
    except Exception as error:  # whatever the plugin raises
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology {where.accelerator_type}: the TPU compiler is not usable here ({reason}); "
            "install it with pip install 'electra-flax[tpu]'"
        ) from None
    mesh = make_mesh(config.mesh, list(topology.devices))
    training = config.training
    check_batch(training.batch_size, training.gradient_accumulation_steps, mesh, config.objective.rows_together)
    return mesh


def part_of(cost: Cost) -> str:
    """Return which line of the table an operation belongs to."""
    if cost.basis == "collective":
        return "collectives"
    if cost.basis == "kernel schedule":
        return "attention kernel"
    return next(part for pattern, part in PARTS if re.search(pattern, cost.instruction.op_name))


def _grouped(costs: Sequence[Cost], group: Callable[[Cost], str]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for cost in costs:
        totals[group(cost)] = totals.get(group(cost), 0.0) + cost.seconds
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _costliest(costs: Sequence[Cost], number: int) -> Iterator[dict[str, Any]]:
    """Yield the costliest operations; those that differ only in their layer are one."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for cost in costs:
        path = re.sub(r"/layer/\d+/", "/layer/*/", cost.instruction.op_name) or cost.instruction.opcode
        source = cost.source.removeprefix(f"{Path(__file__).parents[2]}/")
        groups.setdefault((path, source, cost.basis), []).append(cost.seconds)
    ranked = sorted(groups.items(), key=lambda item: -sum(item[1]))[:number]
    for (path, source, basis), seconds in ranked:
        yield {"predicted_seconds": sum(seconds), "times": len(seconds), "operation": path, "source": source,
               "basis": basis}  # fmt: skip


def _ways_out(
    phase: Phase, where: Slice, plan: Plan, dollars_per_hour: float | None, fill: float | None
) -> Iterator[dict[str, Any]]:
    """Yield of accumulation, parameters split over devices and a larger slice the first that fits, each compiled."""
    config = phase.config
    working = plan.memory["needed"] - _state_bytes(config, where)  # grows with a device's rows
    sharded = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=1, fsdp=-1))
    changes = (
        ("gradient accumulation", config, False),
        ("sharded parameters", sharded, False),
        ("a larger slice", config, True),
    )
    for number, (name, start, larger) in enumerate(changes, start=1):
        # What the state leaves room for says where to begin, so that few programs are compiled in vain.
        room = where.generation.memory_bytes - _STATE_AND_GRADIENTS * _state_bytes(start, where)
        if room <= 0 and not larger:
            log.info("change %d of %d, %s: cannot fit, the state alone is too large", number, len(changes), name)
            continue
        log.info("change %d of %d, %s", number, len(changes), name)
        least = 1 if start is sharded else 2  # what is split over devices may fit without more slices of the batch
        parts = max(least, 2 ** math.ceil(math.log2(max(1.0, working / room)))) if room > 0 else least
        # Not all of the working memory shrinks with a device's rows, so the estimate may be too low.
        for factor in (parts, 2 * parts, 4 * parts):
            try:
                if larger:
                    number = int(where.accelerator_type.rsplit("-", 1)[1]) * factor
                    place, changed = parse_slice(f"{where.generation.prefix}-{number}"), start
                else:
                    steps = factor * start.training.gradient_accumulation_steps
                    training = dataclasses.replace(start.training, gradient_accumulation_steps=steps)
                    place, changed = where, dataclasses.replace(start, training=training)
                found = _plan_one(phase._replace(config=changed), place, None if larger else dollars_per_hour, 0, fill)
            except UserError:  # the batch cannot be cut that far, or there is no slice of that size
                continue
            # Each program's text and tracing take hundreds of megabytes, of which nobody asks again.
            jax.clear_caches()
            give_back_unused()
            if found.fits:
                yield _change(config, changed, where, place, found)
                break


def _state_bytes(config: Config, where: Slice) -> int:
    """Return parameters and optimizer state on each device."""
    state = initial_state.abstract_state(config)
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, _mesh(config, where))), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)


def _change(old: Config, new: Config, where: Slice, place: Slice, plan: Plan) -> dict[str, Any]:
    changes = [f"--{name} {value.split(' -> ')[1]}" for name, value in config_differences(old, new).items()]
    if place is not where:
        changes.append(f"--topology {place.accelerator_type}")
    return {
        "change": " ".join(changes),
        "memory_needed": plan.memory["needed"],
        "predicted_step_seconds": plan.predicted_step_seconds,
        "predicted_days": plan.predicted_days,
        "predicted_dollars": plan.predicted_dollars,
    }
