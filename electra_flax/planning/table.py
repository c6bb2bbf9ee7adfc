"""What a plan tells, and the lines in which people read it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from electra_flax.formats import counted, duration, rate
from electra_flax.formats import device_memory as memory

INDENT = 25
"""Where values begin, and so where lines that are too long go on."""


@dataclass(frozen=True)
class Plan:
    """Everything that plan tells about one configuration on one slice. Predictions are named so."""

    accelerator_type: str
    topology: str
    mesh: dict[str, int]
    batch_size: int
    """Rows of a step."""
    gradient_accumulation_steps: int
    max_seq_length: int
    compute_dtype: str
    attention: str
    """"kernel" or "plain"."""
    parameters: int
    flops_per_step: int
    """Of matrix products, forward and backward, nothing recomputed counted twice."""
    fits: bool
    memory: dict[str, int]
    """Bytes on each device."""
    predicted_step_seconds: float | None = None
    predicted_parts_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    predicted_basis_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """The same time by where it comes from."""
    predicted_mfu: float | None = None
    predicted_tokens_per_second: float | None = None
    """Padding counted."""
    fill: float | None = None
    """Share of the rows' places that hold tokens, where it is known."""
    is_packed: bool = False
    predicted_real_tokens_per_second: float | None = None
    """Padding left out."""
    num_steps: int = 0
    predicted_days: float | None = None
    dollars_per_hour: float = 0.0
    predicted_dollars: float | None = None
    prices_date: str | None = None
    loops_counted_once: tuple[str, ...] = ()
    """Operations whose number of trips the program does not say: the prediction is that much too low."""
    costliest: tuple[dict[str, Any], ...] = ()
    ways_out: tuple[dict[str, Any], ...] = ()


def report(plan: Plan) -> str:
    """Return the table of electra-flax plan."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    accumulation = plan.gradient_accumulation_steps
    slices = f", {accumulation} accumulation steps" if accumulation > 1 else ""
    yield _row("slice", f"{plan.accelerator_type} (topology {plan.topology}), mesh {mesh}")
    packed = ", rows packed" if plan.is_packed else ""
    batch = f"{plan.batch_size:,} x {plan.max_seq_length:,} tokens{slices}, {plan.compute_dtype}{packed}"
    yield _row("batch", batch)
    yield _row("parameters", f"{plan.parameters:,}")
    yield _row("arithmetic", f"{plan.flops_per_step / 1e12:,.1f} TFLOP/step (matrix products)")
    yield _row("attention", f"{plan.attention}{'' if plan.attention == 'kernel' else ' (XLA)'}")
    needed, limit = plan.memory["needed"], plan.memory["limit"]
    yield ""
    if plan.fits:
        yield _row("memory per device", f"{memory(needed)} of {memory(limit)}: fits")
        for name in ("arguments", "temporaries", "outputs", "code"):
            yield _row(f"  {name}", memory(plan.memory[name]))
    else:
        yield _row(
            "memory per device", f"{memory(needed)} of {memory(limit)}: DOES NOT FIT, {memory(needed - limit)} too much"
        )
    if plan.predicted_step_seconds is not None:
        yield from _predictions(plan, plan.predicted_step_seconds)
    if not plan.fits:
        yield from _ways_out(plan)


def _predictions(plan: Plan, seconds: float) -> Iterator[str]:
    yield ""
    yield "predicted, not measured (method and error bars: docs/plan.md)"
    yield _row("step", f"{seconds:.3f} s")
    for part, part_seconds in plan.predicted_parts_seconds.items():
        yield _row(f"  {part}", f"{part_seconds * 1e3:8.1f} ms {part_seconds / seconds:5.0%}")
    if once := plan.loops_counted_once:
        yield _row(
            "  counted once", f"{counted(len(once), 'loops')} of unknown trip count ({once[0]}): the step takes longer"
        )
    yield _row("throughput", f"{rate(plan.predicted_tokens_per_second or 0, 'tokens')}, MFU {plan.predicted_mfu:.0%}")
    if plan.predicted_real_tokens_per_second is not None:
        real = rate(plan.predicted_real_tokens_per_second, "tokens")
        yield _row("  without padding", f"{real}, where rows are {plan.fill:.1%} full")
    yield _row("all steps", f"{plan.num_steps:,} steps in {duration(86_400 * (plan.predicted_days or 0))}")
    source = f"list price of {plan.prices_date}" if plan.prices_date else "as given"
    yield _row("cost", f"${plan.predicted_dollars:,.0f} at ${plan.dollars_per_hour:,.2f} an hour ({source})")
    if plan.costliest:
        yield ""
        yield "costliest operations (a fusion counts as one)"
        for operation in plan.costliest:
            times = f"{operation['times']} x" if operation["times"] > 1 else ""
            yield f"  {operation['predicted_seconds'] * 1e3:8.2f} ms {times:>6s} {operation['operation']}"
            yield f"{'':21s}{operation['source'] or 'no source'}; time from: {operation['basis']}"


def _ways_out(plan: Plan) -> Iterator[str]:
    yield ""
    yield (
        "changes that make it fit, each compiled:"
        if plan.ways_out
        else "no change of accumulation, mesh or slice makes it fit"
    )
    for way in plan.ways_out:
        yield _row(
            f"  {way['change']}",
            f"{memory(way['memory_needed'])}, step predicted at {way['predicted_step_seconds']:.3f} s, "
            f"{duration(86_400 * way['predicted_days'])}, ${way['predicted_dollars']:,.0f}",
        )


def _row(name: str, value: str) -> str:
    return f"{name:{INDENT - 1}s} {value}"
