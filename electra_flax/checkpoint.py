"""Saving and restoring a run with Orbax.

A checkpoint `<workdir>/checkpoints/<step>` holds the train state and a small JSON: the position of the input (the
next global batch) and the release that wrote it. The configuration lies once in `<workdir>/config.yaml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

import electra_flax
from electra_flax.config import CheckpointConfig, Config, UserError
from electra_flax.sharding import state_shardings
from electra_flax.step import TrainState, abstract_state


class Checkpoints:
    """The checkpoints of one workdir; saves in the background."""

    def __init__(self, workdir: Path, config: CheckpointConfig | None = None) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.max_to_keep if config else None,
            enable_async_checkpointing=config is not None,
            read_only=config is None,
        )
        self._path = (workdir / "checkpoints").resolve()
        if config is None and not self._path.is_dir():
            raise UserError(f"{workdir}: no checkpoints there; electra-flax pretrain --workdir {workdir} makes some")
        self._manager = ocp.CheckpointManager(self._path, options=options)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving; returns as soon as the arrays are copied off the devices."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        meta = {"next_batch": step, "electra_flax": electra_flax.__version__}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        )

    def restore(self, config: Config, mesh: Mesh, step: int | None = None) -> TrainState:
        """The state of a step (the newest by default), placed on the mesh.

        Raises UserError where there is no such checkpoint.
        """
        steps = sorted(self._manager.all_steps())
        if not steps or (step is not None and step not in steps):
            there = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self._path}: no checkpoint of step {step}; there are: {there}")
        shapes = abstract_state(config)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(shapes, mesh),
        )
        restored: Any = self._manager.restore(
            steps[-1] if step is None else step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(target)),
        )
        return restored["state"]

    def close(self) -> None:
        """Waits for the save in progress."""
        self._manager.wait_until_finished()
        self._manager.close()
