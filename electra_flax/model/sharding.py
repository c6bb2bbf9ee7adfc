"""The device mesh and who holds which part of what: ordered rules over parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from electra_flax.config.schema import MeshConfig
from electra_flax.errors import UserError
from electra_flax.trees import Batch, tree_names

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))

# (regex over "a/b/c" parameter names, spec); the first match decides, and every parameter must match one.
# Optimizer moments have the same names below another root, so the same rules place them.
#
# tensor: the first matrix of a pair (query, key and value; intermediate) is split by its outputs, the second (output)
# by its inputs. What lies between them, whole heads or units of the feed-forward part, stays on its device, and one
# all-reduce of [B, T, D] after each pair is all that crosses. The vocabulary is split by its words.
# fsdp: the other dimension is split, only to save memory; such weights are gathered before they are used.
SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"word_embeddings/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"(position|token_type)_embeddings/embedding$", PartitionSpec(None, "fsdp")),
    (r"self/(query|key|value)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"self/(query|key|value)/bias$", PartitionSpec("tensor")),
    (r"intermediate/dense/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"intermediate/dense/bias$", PartitionSpec("tensor")),
    (r"output/dense/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(embeddings_project|predictions/dense)/kernel$", PartitionSpec("fsdp", None)),
    (r"(generator|corrective|cloze)_lm_head/bias$", PartitionSpec("tensor")),
    (r"dense_prediction/kernel$", PartitionSpec()),
    (r"^(.*/)?(classifier|qa_outputs|task_specific)/", PartitionSpec()),  # heads of fine-tuning
    (r"(bias|scale)$", PartitionSpec()),
    (r"(^|/)(step|count)$", PartitionSpec()),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arrange the devices. Raises UserError where the axes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != len(devices):
        given = f"mesh.data={config.data}, mesh.fsdp={config.fsdp}, mesh.tensor={config.tensor}"
        raise UserError(
            f"{given} does not fit {len(devices)} devices: the product must be {len(devices)}; "
            "set one of them to -1 to take what is left"
        )
    # Auto: the compiler propagates shardings; make_mesh's default (Explicit) would make Linen modules spell them.
    types = (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # an axis is none of the torus's own, such as tensor=2 of 4x4 chips
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=types)


def check_batch(batch_size: int, accumulation_steps: int, mesh: Mesh, rows_together: int = 1) -> None:
    """Raise UserError where a slice of the batch cannot be cut evenly over the devices.

    Of rows that stay together a device has all.
    """
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = replicas * accumulation_steps * rows_together
    together = f" x {rows_together} rows (objective.contrast_rows)" if rows_together > 1 else ""
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"training.batch_size={batch_size} must be a multiple of {unit} = {replicas} devices (mesh data x fsdp) "
            f"x {accumulation_steps} accumulation steps{together}; nearest: {nearest}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return a sharding with rows split over data and fsdp, everything else whole."""
    return NamedSharding(mesh, BATCH_SPEC)


def rows_of_process(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """Return which rows of a global batch the devices of a process hold (None: of this one), ascending.

    A mesh follows the links between chips, so on many slices these rows are not one block: v4-16 has its two
    processes' devices in turn.
    """
    process = jax.process_index() if process is None else process
    is_held = np.zeros(batch_size, bool)
    places: Mapping[jax.Device, Any] = batch_sharding(mesh).devices_indices_map((batch_size,))
    for device in mesh.devices.flat:
        if device.process_index == process:
            is_held[places[device]] = True
    return np.flatnonzero(is_held)


def global_batch(mesh: Mesh, batch_size: int, rows: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Batch:
    """Return a batch's arrays over the mesh; this process gives of each those `rows` that rows_of_process names."""

    def whole_of(array: np.ndarray) -> jax.Array:
        def part(place: Any) -> np.ndarray:
            # A device's rows are one block of the batch, and so one block of `rows`, which are ascending.
            start, stop, _ = place[0].indices(batch_size)
            first = np.searchsorted(rows, start)
            return array[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), batch_sharding(mesh), part)

    return {name: whole_of(array) for name, array in arrays.items()}


def whole(mesh: Mesh) -> NamedSharding:
    """Return a sharding with everything on every device, so that every process can read it."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return a NamedSharding for every leaf of params, optimizer state or a whole TrainState (arrays or shapes)."""
    return jax.tree.map(
        lambda name, leaf: NamedSharding(mesh, _fit(rule_for(name)[1], leaf.shape, mesh)),
        tree_names(tree),
        tree,
    )


def rule_for(name: str) -> tuple[str, PartitionSpec]:
    """Return the first rule that matches; an uncovered parameter is our mistake."""
    for pattern, spec in SHARDING_RULES:
        if re.search(pattern, name):
            return pattern, spec
    raise AssertionError(f"no sharding rule covers the parameter {name}")


def coverage_report(params: Any) -> str:
    """Return which rule took how many parameters, a line each: pattern, axes, arrays, numbers."""
    counts: dict[str, list[int]] = {}
    leaves = zip(jax.tree.leaves(tree_names(params)), jax.tree.leaves(params), strict=True)
    for name, leaf in leaves:
        counts.setdefault(rule_for(name)[0], []).append(leaf.size)
    specs = dict(SHARDING_RULES)
    rows = [
        (pattern, ", ".join(str(axis or "-") for axis in specs[pattern]) or "whole", f"{len(sizes):,}",
         f"{sum(sizes):,}")
        for pattern, sizes in counts.items()
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"  {pattern:{widths[0]}} {axes:{widths[1]}} {arrays:>{widths[2]}} {numbers:>{widths[3]}}"
        for pattern, axes, arrays, numbers in rows
    )


def _fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Drop an axis that does not divide its dimension: that dimension stays whole."""
    axes = (axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False))
    return PartitionSpec(*axes)
